//! A stored body, as it is or compressed.

use std::borrow::Cow;

use bytes::Bytes;

use super::DecodeError;

const PLAIN: u8 = 0;
#[cfg(feature = "zstd")]
const ZSTD: u8 = 1;

/// Of zstd: fast, and most of what there is to gain.
#[cfg(feature = "zstd")]
const LEVEL: i32 = 3;

/// How to compress bodies.
#[cfg(feature = "zstd")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compression {
    /// Of zstd.
    pub(crate) level: i32,
    /// Shorter bodies are left alone.
    pub(crate) minimum: usize,
}

#[cfg(feature = "zstd")]
impl Compression {
    /// Of bodies of at least that many bytes.
    pub(crate) const fn at_least(minimum: usize) -> Self {
        Self { level: LEVEL, minimum }
    }
}

/// Without the feature `zstd`, there is none.
#[cfg(not(feature = "zstd"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {}

/// The coding of the body and its bytes: compressed, if that is shorter.
#[cfg(feature = "zstd")]
pub(crate) fn encode(body: &[u8], compression: Option<Compression>) -> (u8, Cow<'_, [u8]>) {
    let compressed = compression
        .filter(|compression| body.len() >= compression.minimum)
        .and_then(|compression| zstd::bulk::compress(body, compression.level).ok())
        .filter(|compressed| compressed.len() < body.len());
    compressed.map_or((PLAIN, body.into()), |compressed| (ZSTD, compressed.into()))
}

#[cfg(not(feature = "zstd"))]
pub(crate) fn encode(body: &[u8], _: Option<Compression>) -> (u8, Cow<'_, [u8]>) {
    (PLAIN, body.into())
}

/// The body that is `stored` in this coding and has that many bytes. Never makes room for more than
/// `max`.
pub(crate) fn decode(
    coding: u8,
    stored: Bytes,
    length: u64,
    max: usize,
) -> Result<Bytes, DecodeError> {
    let length = usize::try_from(length).ok().filter(|length| *length <= max);
    let length = length.ok_or(DecodeError::TooLarge)?;
    match coding {
        PLAIN if stored.len() == length => Ok(stored),
        PLAIN => Err(DecodeError::Damaged),
        #[cfg(feature = "zstd")]
        ZSTD => {
            let mut body = Vec::new();
            body.try_reserve_exact(length).map_err(|_| DecodeError::TooLarge)?;
            zstd::bulk::Decompressor::new()
                .and_then(|mut zstd| zstd.decompress_to_buffer(&stored, &mut body))
                .map_err(|_| DecodeError::Damaged)?;
            if body.len() == length { Ok(body.into()) } else { Err(DecodeError::Damaged) }
        }
        _ => Err(DecodeError::OtherVersion),
    }
}
