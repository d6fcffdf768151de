//! Pulls, verifies, stores, unpacks, compiles and collects images.
