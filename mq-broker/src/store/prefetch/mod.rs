//! Reading ahead of consumers: `readers` tells sequential readers apart, `window` asks the system for what
//! each of them wants next, and `shared` does it for several readers of one segment together.

pub(super) mod readers;
pub(super) mod shared;
pub(super) mod window;
