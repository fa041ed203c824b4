//! The secret that a client holds, and what the storage knows of it.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

/// 256 bits of the operating system's randomness: OWASP ASVS 5.0 §7.2.3 asks for 128.
const BYTES: usize = 32;
/// Of base64url without padding (RFC 4648 §5).
const CHARACTERS: usize = 43;

/// A session's id: whoever holds it has the session.
///
/// # Security
///
/// Neither `Debug` nor anything else but [`expose`](Self::expose) shows it; the storage sees only its
/// SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionToken([u8; BYTES]);

impl SessionToken {
    /// A new one.
    ///
    /// # Panics
    ///
    /// If the operating system has no randomness to give.
    pub(super) fn random() -> Self {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        Self(bytes)
    }

    #[cfg(test)]
    pub(super) const fn from_bytes(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }

    #[cfg(test)]
    pub(super) const fn as_bytes(&self) -> &[u8; BYTES] {
        &self.0
    }

    /// Reads what [`expose`](Self::expose) has written, and nothing else: of two texts at most one
    /// is this token.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != CHARACTERS {
            return None;
        }
        let mut bytes = [0; BYTES];
        match URL_SAFE_NO_PAD.decode_slice_unchecked(text, &mut bytes) {
            Ok(BYTES) => Some(Self(bytes)),
            _ => None,
        }
    }

    /// The token as text, 43 characters of base64url, to hand to the client that it belongs to.
    pub fn expose(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    pub(super) fn digest(&self) -> TokenDigest {
        TokenDigest(Sha256::digest(self.0).into())
    }

    /// This token under a pad that only the holder of `other` can make.
    ///
    /// A token is used as a pad at most for the one that replaces it, so nothing can be learnt from
    /// two sealed ones.
    pub(super) fn sealed_by(&self, other: &Self) -> [u8; BYTES] {
        let mut hash = Sha256::new();
        hash.update(b"tower-keep: what replaces this session\0");
        hash.update(other.0);
        let pad: [u8; BYTES] = hash.finalize().into();
        std::array::from_fn(|i| self.0[i] ^ pad[i])
    }

    /// The token that was sealed by this one.
    pub(super) fn unseal(&self, sealed: [u8; BYTES]) -> Self {
        Self(Self(sealed).sealed_by(self))
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(..)")
    }
}

/// The SHA-256 of a token: under what the storage keeps the record.
///
/// As nobody can find a token for a given hash, looking one up tells nothing by the time that it
/// takes, and a dump of the storage opens no session.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TokenDigest([u8; BYTES]);

impl TokenDigest {
    pub(crate) const fn from_bytes(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; BYTES] {
        &self.0
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_nothing_else_is_one() {
        let token = SessionToken::random();
        let text = token.expose();
        assert_eq!(text.len(), CHARACTERS);
        assert_eq!(SessionToken::parse(text.as_bytes()), Some(token));
        for other in
            ["", &text[1..], &format!("{text}A"), &format!("{}=", &text[1..]), &" ".repeat(43)]
        {
            assert_eq!(SessionToken::parse(other.as_bytes()), None, "{other}");
        }
        let zeros = "A".repeat(CHARACTERS);
        assert!(SessionToken::parse(zeros.as_bytes()).is_some());
        // The last character has two bits that mean nothing: only one of four spellings counts.
        for last in ["B", "C", "D"] {
            assert_eq!(SessionToken::parse(format!("{}{last}", &zeros[1..]).as_bytes()), None);
        }
        assert_eq!(
            SessionToken::parse(&"+/".repeat(22).as_bytes()[..43]),
            None,
            "another alphabet"
        );
    }

    #[test]
    fn a_sealed_token_is_opened_by_its_predecessor_alone() {
        let (old, new) = (SessionToken::random(), SessionToken::random());
        let sealed = new.sealed_by(&old);
        assert_ne!(&sealed, new.as_bytes());
        assert_eq!(old.unseal(sealed), new);
        assert_ne!(SessionToken::random().unseal(sealed), new);
    }

    #[test]
    fn nothing_shows_a_token() {
        let token = SessionToken::from_bytes([7; 32]);
        assert_eq!(format!("{token:?} {:?}", token.digest()), "SessionToken(..) TokenDigest(..)");
    }
}
