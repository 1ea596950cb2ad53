//! The contract of every compressor, as checks that any can be put through: those of this crate, and yours. A
//! failed check panics with the broken promise.
//!
//! ```
//! use rpc_core::compress::contract;
//!
//! contract::check("lz4", 1);
//! ```

use std::sync::Arc;

use super::{Compressor, CompressorPlugin, RATIO_MAX};
use crate::plugin::Settings;

/// Inputs of the random check.
const ROUNDS: usize = 2_000;

/// Runs all checks on the linked compressor called `name`. The same `seed` repeats a run.
///
/// # Panics
/// There is no such compressor, or a promise is broken; the message names it.
pub fn check(name: &str, seed: u64) {
    assert!(
        (1..=255).contains(&name.len()),
        "the name `{name}` has {} bytes; the wire has room for 1 to 255",
        name.len()
    );
    let built = CompressorPlugin::build(name, &Settings::new());
    let compressor: Arc<dyn Compressor> =
        built.unwrap_or_else(|error| panic!("it cannot be built without settings: {error}"));
    bytes_come_back(&*compressor, seed);
    text_shrinks(&*compressor);
    damage_is_refused_or_has_the_size(&*compressor, seed);
    a_wrong_size_is_refused(&*compressor);
    survives_arbitrary_bytes(&*compressor, seed);
}

/// Bytes of any kind and size survive a round trip.
///
/// # Panics
/// They did not.
pub fn bytes_come_back(compressor: &dyn Compressor, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for size in [0, 1, 2, 15, 16, 1023, 1024, 70_000, 1 << 20] {
        let mut noise = vec![0; size];
        random.fill(&mut noise);
        let few = noise.iter().map(|byte| byte & 3).collect();
        for plain in [noise, few, vec![7; size], text(size)] {
            let packed = pack(compressor, &plain);
            match compressor.decompress(&packed, size) {
                Ok(back) => assert!(back == plain, "{size} bytes came back changed"),
                Err(error) => panic!("{size} bytes were packed and cannot be unpacked: {error}"),
            }
        }
    }
}

/// Compressible data shrinks to less than a third.
///
/// # Panics
/// It did not.
pub fn text_shrinks(compressor: &dyn Compressor) {
    let plain = text(20_000);
    let packed = pack(compressor, &plain).len();
    assert!(
        packed < plain.len() / 3,
        "{} bytes of a text became {packed}",
        plain.len()
    );
}

/// If a byte is changed or cut off, the result is an error, or bytes of the announced size; never a panic,
/// never more bytes.
///
/// # Panics
/// The compressor panicked or produced more.
pub fn damage_is_refused_or_has_the_size(compressor: &dyn Compressor, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let plain = text(2_000);
    let packed = pack(compressor, &plain);
    for at in 0..packed.len() {
        let mut damaged = packed.clone();
        damaged[at] ^= random.u8(1..);
        unpack_at_most(compressor, &damaged, plain.len());
        assert!(
            unpack_at_most(compressor, &packed[..at], plain.len()) < plain.len(),
            "all came back out of {at} of {} bytes",
            packed.len()
        );
    }
}

/// A sender that announces a wrong size gets an error, and never more bytes than announced.
///
/// # Panics
/// It got something else.
pub fn a_wrong_size_is_refused(compressor: &dyn Compressor) {
    for plain in [text(5_000), vec![0; 5_000]] {
        let packed = pack(compressor, &plain);
        for less in [0, 1, 100, plain.len() - 1] {
            let got = compressor.decompress(&packed, less);
            assert!(got.is_err(), "5000 bytes came out where {less} were announced");
        }
        // Too much announced: an error here, or fewer bytes, which the caller refuses.
        let got = unpack_at_most(compressor, &packed, plain.len() + 1);
        assert!(got <= plain.len(), "one byte was made up");
    }
}

/// For arbitrary bytes the result is an error or at most as many bytes as announced.
///
/// # Panics
/// The compressor panicked or produced more.
pub fn survives_arbitrary_bytes(compressor: &dyn Compressor, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let whole = pack(compressor, &text(600));
    for _ in 0..ROUNDS {
        let mut bytes = whole.clone();
        bytes.truncate(random.usize(..=whole.len()));
        let kept = random.usize(..=bytes.len().min(12));
        random.fill(&mut bytes[kept..]);
        let said = random.usize(..1 + bytes.len() * RATIO_MAX / 4);
        unpack_at_most(compressor, &bytes, said);
    }
}

fn pack(compressor: &dyn Compressor, plain: &[u8]) -> Vec<u8> {
    compressor
        .compress(plain)
        .unwrap_or_else(|error| panic!("{} bytes cannot be packed: {error}", plain.len()))
}

/// Number of bytes produced, 0 for an error.
fn unpack_at_most(compressor: &dyn Compressor, packed: &[u8], said: usize) -> usize {
    match compressor.decompress(packed, said) {
        Ok(plain) => {
            assert!(
                plain.len() <= said,
                "{} bytes came out where {said} were announced",
                plain.len()
            );
            plain.len()
        }
        Err(_) => 0,
    }
}

/// Something like an envelope: repeated names, varying numbers.
fn text(size: usize) -> Vec<u8> {
    let lines = (0_u64..).flat_map(|line| {
        format!("{{\"order\":{},\"customer\":\"c-{}\"}},", line * 7919, line % 13).into_bytes()
    });
    lines.take(size).collect()
}
