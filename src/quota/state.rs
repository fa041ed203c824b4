//! What is remembered of a counter, and its bytes.

/// A counter between two steps.
///
/// Times are microseconds since the Unix epoch, `birth` the time at which the counter was first
/// used or last reset: a receipt from before it returns nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Of a sliding window.
    Sliding {
        /// See [`State`].
        birth: u64,
        /// When the current window began.
        start: u64,
        /// Units of the window before it.
        previous: u32,
        /// Units of the current window.
        current: u32,
    },
    /// Of a fixed or calendar window.
    Fixed {
        /// See [`State`].
        birth: u64,
        /// When the window began.
        start: u64,
        /// Units of the window.
        count: u32,
    },
    /// Of a token bucket.
    Bucket {
        /// See [`State`].
        birth: u64,
        /// The tick at which `debt` was right.
        at: u64,
        /// What is to drain until the bucket is full, in units times the ticks of a period.
        debt: u64,
        /// Debt that has left since the birth, drained or refunded.
        returned: u64,
    },
    /// Of a strict window.
    Strict {
        /// See [`State`].
        birth: u64,
        /// The newest sub-window.
        slot: u64,
        /// Units of the sub-windows, newest first.
        counts: Box<[u32]>,
    },
    /// Of a sliding log.
    Log {
        /// See [`State`].
        birth: u64,
        /// Times and units, oldest first.
        entries: Box<[(u64, u32)]>,
    },
}

impl State {
    /// The state as bytes: a letter, then big-endian numbers. The Lua of the Redis backend reads
    /// and writes the same.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        let mut put = |n: u64| bytes.extend_from_slice(&n.to_be_bytes());
        match self {
            Self::Sliding { birth, start, previous, current } => {
                put(*birth);
                put(*start);
                bytes.extend_from_slice(&previous.to_be_bytes());
                bytes.extend_from_slice(&current.to_be_bytes());
                bytes.insert(0, b's');
            }
            Self::Fixed { birth, start, count } => {
                put(*birth);
                put(*start);
                bytes.extend_from_slice(&count.to_be_bytes());
                bytes.insert(0, b'f');
            }
            Self::Bucket { birth, at, debt, returned } => {
                put(*birth);
                put(*at);
                put(*debt);
                put(*returned);
                bytes.insert(0, b'b');
            }
            Self::Strict { birth, slot, counts } => {
                put(*birth);
                put(*slot);
                bytes.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
                bytes.insert(0, b'w');
            }
            Self::Log { birth, entries } => {
                put(*birth);
                for (time, units) in entries {
                    bytes.extend_from_slice(&time.to_be_bytes());
                    bytes.extend_from_slice(&units.to_be_bytes());
                }
                bytes.insert(0, b'l');
            }
        }
        bytes
    }

    /// The state of these bytes, if they are one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (letter, rest) = bytes.split_first()?;
        let (birth, rest) = number(rest)?;
        match letter {
            b's' => {
                let (start, rest) = number(rest)?;
                let ([previous, current], []) = rest.as_chunks::<4>() else { return None };
                let (previous, current) =
                    (u32::from_be_bytes(*previous), u32::from_be_bytes(*current));
                Some(Self::Sliding { birth, start, previous, current })
            }
            b'f' => {
                let (start, rest) = number(rest)?;
                Some(Self::Fixed { birth, start, count: u32::from_be_bytes(rest.try_into().ok()?) })
            }
            b'b' => {
                let (at, rest) = number(rest)?;
                let (debt, rest) = number(rest)?;
                let (returned, []) = number(rest)? else { return None };
                Some(Self::Bucket { birth, at, debt, returned })
            }
            b'w' => {
                let (slot, rest) = number(rest)?;
                let (counts, []) = rest.as_chunks::<4>() else { return None };
                let counts = counts.iter().map(|count| u32::from_be_bytes(*count)).collect();
                Some(Self::Strict { birth, slot, counts })
            }
            b'l' => {
                let (entries, []) = rest.as_chunks::<12>() else { return None };
                let entries = entries.iter().map(|entry| {
                    let (time, units) = number(entry)?;
                    Some((time, u32::from_be_bytes(units.try_into().ok()?)))
                });
                Some(Self::Log { birth, entries: entries.collect::<Option<_>>()? })
            }
            _ => None,
        }
    }
}

/// The next eight bytes as a number that the arithmetic can bear: below 2^53.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    let number = u64::from_be_bytes(*number);
    (number < 1 << 53).then_some((number, rest))
}
