//! The journal's frames as bytes; pure.
