"""What lies in files: data sets, splits and graphs, as they are downloaded or as people have them."""
