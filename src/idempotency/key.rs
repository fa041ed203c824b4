//! The key that a client sends for an operation.

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

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
    /// The key of this text, without quotes and escapes: for what is done outside of requests, such as
    /// [`IdempotencyKeys::handle`](super::IdempotencyKeys::handle). What a policy says of its length is
    /// not asked.
    ///
    /// # Errors
    ///
    /// If there is nothing in it, or something else than printable ASCII.
    pub fn try_new(text: &str) -> Result<Self, KeyError> {
        match text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            _ if text.is_empty() => Err(KeyError::Empty),
            true => Ok(Self(text.into())),
            false => Err(KeyError::Malformed),
        }
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The key as [`as_str`](Self::as_str) shows it, without quotes: for support, who was told it.
///
/// The errors are [`Empty`](KeyError::Empty) and [`Malformed`](KeyError::Malformed): what a policy asks
/// of the length is not asked here.
impl FromStr for IdempotencyKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            _ if text.is_empty() => Err(KeyError::Empty),
            true => Ok(Self(text.into())),
            false => Err(KeyError::Malformed),
        }
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

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const UUID: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";

    fn lenient(line: &str) -> Result<String, KeyError> {
        parse(KeySyntax::Lenient, line.as_bytes())
    }

    fn strict(line: &str) -> Result<String, KeyError> {
        parse(KeySyntax::Strict, line.as_bytes())
    }

    fn parse(syntax: KeySyntax, line: &[u8]) -> Result<String, KeyError> {
        let rules = KeyRules { syntax, ..KeyRules::default() };
        rules.parse(line).map(|key| key.as_str().to_owned())
    }

    /// The lines of a request, and what is read of them.
    fn read(rules: &KeyRules, lines: &[(&'static str, &[u8])]) -> Result<Option<String>, KeyError> {
        let mut headers = HeaderMap::new();
        for &(name, value) in lines {
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        Ok(rules.read(&headers)?.map(|key| key.as_str().to_owned()))
    }

    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    #[test]
    fn a_quoted_key_is_read_in_both_syntaxes() {
        for (line, key) in [
            (&*quoted(UUID), UUID),
            (r#""k""#, "k"),
            (r#"  "k""#, "k"),
            ("\t\"k\" \t", "k"),
            (r#""a b,c;d""#, "a b,c;d"),
            (r#"" k ""#, " k "),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#""\\""#, r"\"),
            (r#""!~""#, "!~"),
            (r#""k";a"#, "k"),
            (r#""k"; a=1;b="2";c=tok;d=:AQ==:;e=?0;f=@1;a=1.5"#, "k"),
        ] {
            assert_eq!(lenient(line).as_deref(), Ok(key), "{line}");
            assert_eq!(strict(line).as_deref(), Ok(key), "{line}");
        }
    }

    #[test]
    fn a_key_without_quotes_is_read_unless_the_syntax_is_strict() {
        for line in
            [UUID, "k", "a/b:c", "01J9ZX5", "?1", ":AQ==:", "(a)", "@1", "1.50", "'k'", "a=b"]
        {
            assert_eq!(lenient(line).as_deref(), Ok(line));
            assert_eq!(lenient(&format!(" \t{line}\t ")).as_deref(), Ok(line));
            assert_eq!(strict(line), Err(KeyError::Malformed), "{line}");
        }
    }

    #[test]
    fn what_is_no_single_string_is_malformed() {
        for line in [
            r#"""""#,
            r#"""#,
            r#""k"#,
            r#"k""#,
            r#""k\""#,
            r#""\k""#,
            r#""k" "l""#,
            r#""k""l""#,
            r#""k", "l""#,
            r#""k","#,
            r#","k""#,
            r#"("k")"#,
            r#"("k" "l")"#,
            r#"a="k""#,
            r#"%"k""#,
            r#""k" ;a"#,
            r#""k";"#,
            r#""k";A"#,
            r#""k";a="#,
            r#""k";a=""#,
            "k,l",
            "k, l",
            "k l",
            "k\tl",
            "k;a=1",
            r"k\l",
            ",",
            ";",
            "\"a\tb\"",
            "\"a\nb\"",
            "\"a\0b\"",
            "\"a\x7fb\"",
            "\"ä\"",
            "ä",
            "a\x7f",
            "a\0",
            "\na",
        ] {
            assert_eq!(lenient(line), Err(KeyError::Malformed), "{line:?}");
            assert_eq!(strict(line), Err(KeyError::Malformed), "{line:?}");
        }
    }

    #[test]
    fn exactly_the_visible_characters_that_mean_nothing_else_need_no_quotes() {
        for byte in 0..=u8::MAX {
            let visible = (0x21..=0x7e).contains(&byte) && !br#""\,;"#.contains(&byte);
            for line in [[b'a', byte, b'a'], [byte, b'a', b'a'], [b'a', b'a', byte]] {
                let trimmed = matches!(byte, b' ' | b'\t') && line[1] != byte;
                let read = parse(KeySyntax::Lenient, &line);
                assert_eq!(read.is_ok(), visible || trimmed, "{byte:#x}");
            }
        }
    }

    #[test]
    fn nothing_is_an_empty_key() {
        for line in ["", " ", "\t ", r#""""#, r#" "" "#, r#""";a=1"#] {
            assert_eq!(lenient(line), Err(KeyError::Empty), "{line:?}");
            assert_eq!(strict(line), Err(KeyError::Empty), "{line:?}");
        }
        let rules = KeyRules { min_length: 0, ..KeyRules::default() };
        assert_eq!(rules.parse(b"\"\""), Err(KeyError::Empty));
    }

    #[test]
    fn the_length_is_that_of_the_decoded_key() {
        let rules = KeyRules { min_length: 3, max_length: 5, ..KeyRules::default() };
        let read = |line: &str| rules.parse(line.as_bytes()).map(|key| key.as_str().len());
        for (text, expected) in [
            ("ab", Err(KeyError::TooShort { min: 3 })),
            ("abc", Ok(3)),
            ("abcde", Ok(5)),
            ("abcdef", Err(KeyError::TooLong { max: 5 })),
        ] {
            assert_eq!(read(text), expected, "{text}");
            assert_eq!(read(&quoted(text)), expected, "{text}");
        }
        assert_eq!(read(r#""\"\"""#), Err(KeyError::TooShort { min: 3 }));
        assert_eq!(read(r#""\"\"\"\"\"""#), Ok(5));
        assert_eq!(read(r#""abc";parameter=1"#), Ok(3));
    }

    #[test]
    fn by_default_a_key_has_255_characters_at_most() {
        for (length, expected) in [
            (255, None),
            (256, Some(KeyError::TooLong { max: 255 })),
            (10_240, Some(KeyError::TooLong { max: 255 })),
        ] {
            let text = "k".repeat(length);
            assert_eq!(lenient(&text).err(), expected);
            assert_eq!(lenient(&quoted(&text)).err(), expected);
            assert_eq!(strict(&quoted(&text)).err(), expected);
        }
    }

    #[test]
    fn a_request_has_one_key_or_none() {
        let rules = KeyRules::default();
        assert_eq!(read(&rules, &[]), Ok(None));
        assert_eq!(read(&rules, &[("x-idempotency-key", b"k")]), Ok(None));
        assert_eq!(read(&rules, &[("idempotency-key", b"k")]), Ok(Some("k".into())));
        assert_eq!(read(&rules, &[("idempotency-key", b"\xff")]), Err(KeyError::Malformed));
        for second in [&b"k"[..], b"l", b""] {
            let lines = [("idempotency-key", &b"k"[..]), ("idempotency-key", second)];
            assert_eq!(read(&rules, &lines), Err(KeyError::Repeated));
        }
    }

    #[test]
    fn the_field_may_have_another_name() {
        let header = HeaderName::from_static("x-idempotency-key");
        let rules = KeyRules { header, ..KeyRules::default() };
        let lines = [("idempotency-key", &b"a"[..]), ("x-idempotency-key", b"b")];
        assert_eq!(read(&rules, &lines), Ok(Some("b".into())));
    }

    #[test]
    fn nothing_shows_a_key() {
        let key = KeyRules::default().parse(b"hunter2").unwrap();
        assert_eq!(
            format!("{key:?} {:?}", Some(&key)),
            "IdempotencyKey(..) Some(IdempotencyKey(..))"
        );
    }

    #[test]
    fn every_error_has_its_own_code_and_says_what_to_do() {
        for (error, code, says) in [
            (KeyError::Repeated, "key-repeated", "send one"),
            (KeyError::Empty, "key-empty", "make a new one"),
            (KeyError::TooShort { min: 21 }, "key-too-short", "at least 21"),
            (KeyError::TooLong { max: 64 }, "key-too-long", "at most 64"),
            (KeyError::Malformed, "key-malformed", "in double quotes"),
        ] {
            assert_eq!(error.code(), code);
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_what_is_read_is_printable(
            quote in any::<bool>(),
            line in prop_oneof![
                vec(any::<u8>(), 0..40),
                "[\"\\\\,;=a-c ?:@%()]{0,12}".prop_map(String::into_bytes),
            ],
        ) {
            let line = if quote { [b"\"", &line[..], b"\""].concat() } else { line };
            for syntax in [KeySyntax::Lenient, KeySyntax::Strict] {
                if let Ok(key) = parse(syntax, &line) {
                    prop_assert!((1..=255).contains(&key.len()));
                    prop_assert!(key.bytes().all(|byte| matches!(byte, b' '..=b'~')));
                }
            }
            if let Ok(key) = parse(KeySyntax::Strict, &line) {
                prop_assert_eq!(parse(KeySyntax::Lenient, &line), Ok(key));
            }
        }

        #[test]
        fn quoted_and_bare_are_the_same_key(key in r"[!#-+\--:<-\[\]-~]{1,255}") {
            prop_assert_eq!(lenient(&key), Ok(key.clone()));
            prop_assert_eq!(lenient(&quoted(&key)), Ok(key));
        }

        #[test]
        fn every_printable_key_can_be_quoted(key in "[ -~]{1,255}", parameters in "(;[a-z]{1,3}(=[0-9])?){0,3}") {
            let line = format!("{}{parameters}", quoted(&key));
            prop_assert_eq!(strict(&line), Ok(key.clone()));
            prop_assert_eq!(lenient(&line), Ok(key));
        }
    }
}
