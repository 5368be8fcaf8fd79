"""The file formats of detection data sets, each read into a `DetectionDataset`."""
