//! Pods and the containers in them.
