//! The key that a client sends for an operation.

use std::{borrow::Cow, fmt, sync::Arc};

use http::{HeaderMap, HeaderName};
use sfv::{
    BareItemFromInput, Parser, StringRef,
    visitor::{Ignored, ItemVisitor, ParameterVisitor},
};

/// The key that a client gave to an operation, without quotes and escapes: printable ASCII.
///
/// # Security
///
/// Together with the client's identity, the key opens the stored response, so `Debug` does not show
/// it, and the storage knows only a hash of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(..)")
    }
}

/// How a key must be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KeySyntax {
    /// With or without quotes, as most clients leave them out: `"k"` and `k` are the same key. The
    /// default.
    ///
    /// A key without quotes is made of visible ASCII characters other than `"`, `\`, `,` and `;`.
    #[default]
    Lenient,
    /// A quoted string, as the standard wants it: an Item of RFC 9651 whose value is a String
    /// (draft-ietf-httpapi-idempotency-key-header-07, section 2.1).
    Strict,
}

/// Why the key of a request cannot be used.
///
/// `Display` tells the client what to do. Neither shows the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// There are several header lines.
    Repeated,
    /// There is no character in it.
    Empty,
    /// There are fewer characters than the policy demands.
    TooShort {
        /// The fewest that are allowed.
        min: usize,
    },
    /// There are more characters than the policy allows.
    TooLong {
        /// The most that are allowed.
        max: usize,
    },
    /// It is not written as [`KeySyntax`] says: a list, say, or with control characters.
    Malformed,
}

impl KeyError {
    /// A name for programs, which does not change: `key-repeated`, `key-empty`, `key-too-short`,
    /// `key-too-long` or `key-malformed`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Repeated => "key-repeated",
            Self::Empty => "key-empty",
            Self::TooShort { .. } => "key-too-short",
            Self::TooLong { .. } => "key-too-long",
            Self::Malformed => "key-malformed",
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repeated => {
                f.write_str("there are several idempotency keys: send one, in a single header line")
            }
            Self::Empty => f.write_str(
                "the idempotency key is empty: make a new one for each operation, such as a UUID",
            ),
            Self::TooShort { min } => write!(
                f,
                "the idempotency key is too short: use at least {min} characters, such as a UUID"
            ),
            Self::TooLong { max } => {
                write!(f, "the idempotency key is too long: use at most {max} characters")
            }
            Self::Malformed => f.write_str(
                "the idempotency key cannot be read: send one string of printable ASCII characters \
                 in double quotes, such as \"8e03978e-40d5-43e8-bc93-6894a57f9324\"",
            ),
        }
    }
}

impl std::error::Error for KeyError {}

/// Where the key of a request is, and what it may look like.
#[derive(Debug, Clone)]
pub(super) struct KeyRules {
    pub(super) header: HeaderName,
    pub(super) syntax: KeySyntax,
    /// In characters of the decoded key.
    pub(super) min_length: usize,
    pub(super) max_length: usize,
}

impl Default for KeyRules {
    fn default() -> Self {
        Self {
            header: HeaderName::from_static("idempotency-key"),
            syntax: KeySyntax::default(),
            min_length: 1,
            max_length: 255,
        }
    }
}

impl KeyRules {
    /// The key of the request with these header fields, if it has one.
    pub(super) fn read(&self, headers: &HeaderMap) -> Result<Option<IdempotencyKey>, KeyError> {
        let mut lines = headers.get_all(&self.header).iter();
        let Some(line) = lines.next() else { return Ok(None) };
        // Even if they are equal: what stands in front of us may have read another one.
        if lines.next().is_some() {
            return Err(KeyError::Repeated);
        }
        self.parse(line.as_bytes()).map(Some)
    }

    /// The key in this line.
    pub(super) fn parse(&self, line: &[u8]) -> Result<IdempotencyKey, KeyError> {
        match trim(line) {
            [] => Err(KeyError::Empty),
            quoted @ [b'"', ..] => self.checked(string(quoted)?.as_str()),
            bare if self.syntax == KeySyntax::Lenient && bare.iter().all(is_bare) => {
                self.checked(str::from_utf8(bare).map_err(|_| KeyError::Malformed)?)
            }
            _ => Err(KeyError::Malformed),
        }
    }

    /// `text` is ASCII, so its bytes are its characters.
    fn checked(&self, text: &str) -> Result<IdempotencyKey, KeyError> {
        match text.len() {
            0 => Err(KeyError::Empty),
            length if length < self.min_length => Err(KeyError::TooShort { min: self.min_length }),
            length if length > self.max_length => Err(KeyError::TooLong { max: self.max_length }),
            _ => Ok(IdempotencyKey(text.into())),
        }
    }
}

/// Whitespace around a field's value is no part of it (RFC 9110, section 5.5).
fn trim(mut line: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = line {
        line = rest;
    }
    line
}

/// What a key without quotes is made of. A comma would begin a list, a semicolon parameters, and the
/// others belong to the quoted form.
fn is_bare(byte: &u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b',' | b';')
}

/// The String of an Item, whatever its parameters (RFC 9651, sections 3.3 and 3.3.3).
fn string(item: &[u8]) -> Result<Cow<'_, StringRef>, KeyError> {
    let mut found = None;
    match Parser::new(item).parse_item_with_visitor(Value(&mut found)) {
        Ok(()) => found.ok_or(KeyError::Malformed),
        Err(_) => Err(KeyError::Malformed),
    }
}

struct Value<'v, 'l>(&'v mut Option<Cow<'l, StringRef>>);

impl<'l> ItemVisitor<'l> for Value<'_, 'l> {
    type Error = KeyError;

    fn bare_item(self, item: BareItemFromInput<'l>) -> Result<impl ParameterVisitor<'l>, KeyError> {
        let BareItemFromInput::String(text) = item else { return Err(KeyError::Malformed) };
        *self.0 = Some(text);
        Ok(Ignored)
    }
}
