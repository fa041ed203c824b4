//! The body of an entry, as it is or compressed.

use bytes::Bytes;

use super::DecodeError;

pub(super) const PLAIN: u8 = 0;
#[cfg(feature = "zstd")]
const ZSTD: u8 = 1;

/// How to compress bodies.
#[cfg(feature = "zstd")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compression {
    /// Of zstd.
    pub(crate) level: i32,
    /// Shorter bodies are left alone.
    pub(crate) minimum: usize,
}

/// Without the feature `zstd`, there is none.
#[cfg(not(feature = "zstd"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {}

/// The compressed body and its coding, if that is shorter.
#[cfg(feature = "zstd")]
pub(super) fn compress(body: &[u8], compression: Option<Compression>) -> Option<(u8, Vec<u8>)> {
    let Compression { level, minimum } = compression?;
    if body.len() < minimum {
        return None;
    }
    let compressed = zstd::bulk::compress(body, level).ok()?;
    (compressed.len() < body.len()).then_some((ZSTD, compressed))
}

#[cfg(not(feature = "zstd"))]
pub(super) fn compress(_: &[u8], compression: Option<Compression>) -> Option<(u8, Vec<u8>)> {
    match compression? {}
}

/// The body whose `len` bytes are `stored` in this coding. Never makes room for more than `len`,
/// which the caller has bounded.
pub(super) fn expand(coding: u8, stored: Bytes, len: usize) -> Result<Bytes, DecodeError> {
    match coding {
        PLAIN if stored.len() == len => Ok(stored),
        PLAIN => Err(DecodeError::Damaged),
        #[cfg(feature = "zstd")]
        ZSTD => {
            let mut body = Vec::new();
            body.try_reserve_exact(len).map_err(|_| DecodeError::TooLarge)?;
            zstd::bulk::Decompressor::new()
                .and_then(|mut zstd| zstd.decompress_to_buffer(&stored, &mut body))
                .map_err(|_| DecodeError::Damaged)?;
            if body.len() == len { Ok(body.into()) } else { Err(DecodeError::Damaged) }
        }
        _ => Err(DecodeError::OtherVersion),
    }
}
