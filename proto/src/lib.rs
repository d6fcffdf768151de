//! CRI v1.36 messages and services, generated from our own .proto.
