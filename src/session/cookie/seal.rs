//! How a token becomes the value of a cookie, and back.

#[cfg(feature = "secure-cookies")]
use super::keys::{KeyRing, Opened};
use crate::session::{SessionToken, presented::Presented};

/// Of a token behind the Base64 of an HMAC-SHA-256.
#[cfg(feature = "secure-cookies")]
const SIGNED_LENGTH: usize = 44 + 43;
/// Of the Base64 of a nonce, a token and the tag of AES-GCM.
#[cfg(feature = "secure-cookies")]
const ENCRYPTED_LENGTH: usize = (12 + 43 + 16_usize).div_ceil(3) * 4;

#[derive(Debug, Clone, Default)]
pub(super) enum Seal {
    #[default]
    None,
    #[cfg(feature = "secure-cookies")]
    Signed(KeyRing),
    #[cfg(feature = "secure-cookies")]
    Encrypted(KeyRing),
}

// Only an encrypted value belongs to a name.
#[cfg_attr(not(feature = "secure-cookies"), allow(unused_variables))]
impl Seal {
    pub(super) fn close(&self, name: &str, token: &SessionToken) -> String {
        let text = token.expose();
        match self {
            Self::None => text,
            #[cfg(feature = "secure-cookies")]
            Self::Signed(ring) => ring.sign(text),
            #[cfg(feature = "secure-cookies")]
            Self::Encrypted(ring) => ring.encrypt(name, text),
        }
    }

    pub(super) fn open(&self, name: &str, value: &[u8]) -> Presented {
        match self {
            Self::None => SessionToken::parse(value).map_or(Presented::Malformed, Presented::token),
            #[cfg(feature = "secure-cookies")]
            Self::Signed(ring) => {
                opened(text_of_length(value, SIGNED_LENGTH).and_then(|text| ring.verify(text)))
            }
            #[cfg(feature = "secure-cookies")]
            Self::Encrypted(ring) => opened(
                text_of_length(value, ENCRYPTED_LENGTH).and_then(|text| ring.decrypt(name, text)),
            ),
        }
    }
}

/// Nothing of another length is copied, nor any key tried on it.
#[cfg(feature = "secure-cookies")]
fn text_of_length(value: &[u8], length: usize) -> Option<&str> {
    if value.len() == length { str::from_utf8(value).ok() } else { None }
}

#[cfg(feature = "secure-cookies")]
fn opened(opened: Option<Opened>) -> Presented {
    let token = |opened: Opened| Some((SessionToken::parse(opened.text.as_bytes())?, opened.renew));
    match opened.and_then(token) {
        Some((token, renew)) => Presented::Token { token, renew },
        None => Presented::Malformed,
    }
}
