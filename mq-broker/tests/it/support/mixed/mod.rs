//! Work of every kind at once, and whether a broker that died in the midst of it kept its word: a ledger of
//! what was asked and answered, the workers that fill it, what a broker shows after its next start, and a
//! pure comparison of the two. Killed processes and cut power use the same.

pub(crate) mod check;
mod consumers;
mod keys;
pub(crate) mod ledger;
pub(crate) mod load;
pub(crate) mod observed;
pub(crate) mod settle;
mod starts;
mod topics;
mod transactions;
mod value;

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod keys_tests;

pub(crate) use check::{Death, check};
pub(crate) use ledger::{Ledger, now};
pub(crate) use load::Load;
pub(crate) use observed::observe;
pub(crate) use value::TOMBSTONE_MS;
