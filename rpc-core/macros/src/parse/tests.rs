//! Mistakes are reported where they stand, in words that say what to write.
