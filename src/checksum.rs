//! A sum of bytes, by which damage to them is noticed.

/// Against accidents alone: anybody can make one that fits.
///
/// Four sums side by side, for one would wait for its own multiplications. Every step is reversible,
/// so damage to a single word is always noticed.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 over the golden ratio
    let step = |sum: u64, word: [u8; 8]| {
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(ODD).rotate_left(32)
    };
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut sums = [1, 2, 3, bytes.len() as u64];
    for block in blocks {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks().0) {
            *sum = step(*sum, *word);
        }
    }
    let mut last = [0; 32];
    last[..rest.len()].copy_from_slice(rest);
    let words = sums.map(u64::to_le_bytes).into_iter().chain(last.as_chunks().0.iter().copied());
    words.fold(0, step)
}
