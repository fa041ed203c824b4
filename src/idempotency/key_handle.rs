//! The public name of a key.

use std::{fmt, str::FromStr};

/// The name by which operators speak of one idempotency key: 64 hexadecimal digits.
///
/// It is a SHA-256 of the policy's name, the scope, the method, the route and the key that the client
/// sent, and shows none of them. It is no secret: no request is answered for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHandle(pub(super) [u8; 32]);

impl fmt::Display for KeyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (digits, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *digits = [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]);
        }
        f.pad(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for KeyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no [`KeyHandle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseKeyHandleError;

impl fmt::Display for ParseKeyHandleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the handle of an idempotency key: that is 64 hexadecimal digits")
    }
}

impl std::error::Error for ParseKeyHandleError {}

impl FromStr for KeyHandle {
    type Err = ParseKeyHandleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| ParseKeyHandleError)?;
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks().0) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(bytes))
    }
}

fn digit(character: u8) -> Result<u8, ParseKeyHandleError> {
    let digit = char::from(character).to_digit(16).ok_or(ParseKeyHandleError)?;
    Ok(digit as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_handle_is_64_lower_case_digits() {
        let handle = KeyHandle(std::array::from_fn(|i| i as u8 * 8 + 7));
        let text = "070f171f272f373f474f575f676f777f878f979fa7afb7bfc7cfd7dfe7eff7ff";
        assert_eq!(handle.to_string(), text);
        assert_eq!(format!("{handle:?}"), text);
        assert_eq!(text.parse(), Ok(handle));
        assert_eq!(text.to_uppercase().parse(), Ok(handle), "as people may type it");
    }

    #[test]
    fn other_texts_are_no_handle() {
        let zeros = "0".repeat(64);
        assert!(zeros.parse::<KeyHandle>().is_ok());
        for (text, what) in [
            (String::new(), "nothing"),
            (zeros[1..].into(), "63"),
            (zeros.clone() + "0", "65"),
            (zeros.replacen('0', "g", 1), "no digit"),
            (zeros.replacen("00", "+0", 1), "a sign"),
            (zeros.replacen("00", "0x", 1), "a prefix"),
            (zeros.replacen("00", "é", 1), "two bytes that are one character"),
            (format!(" {}", &zeros[1..]), "a space"),
        ] {
            assert_eq!(text.parse::<KeyHandle>(), Err(ParseKeyHandleError), "{what}");
        }
    }

    proptest! {
        #[test]
        fn a_handle_is_read_as_it_was_written(bytes: [u8; 32]) {
            prop_assert_eq!(KeyHandle(bytes).to_string().parse(), Ok(KeyHandle(bytes)));
        }

        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<KeyHandle>();
        }
    }
}
