//! One small program per feature, the demo and the load generators.
