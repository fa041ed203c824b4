//! What a request brings to say which session it belongs to.

use http::HeaderValue;

use super::SessionToken;

const BEARER: &[u8] = b"bearer";

/// What was found where a token may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Presented {
    /// Nothing of ours.
    None,
    /// Something that we never wrote: no session can have it, so the storage need not be asked.
    Malformed,
    /// Several that differ. Somebody may have planted one of them, and which is unknown.
    Ambiguous,
    Token {
        token: SessionToken,
        /// It is to be sent again, as a previous key has signed or encrypted it.
        renew: bool,
    },
}

impl Presented {
    pub(super) fn token(token: SessionToken) -> Self {
        Self::Token { token, renew: false }
    }
}

/// The token of `Authorization: Bearer` (RFC 6750, section 2.1).
///
/// Credentials that are no token of ours, such as a JWT, belong to somebody else and do not count.
pub(crate) fn bearer<'l>(lines: impl Iterator<Item = &'l HeaderValue>) -> Presented {
    let mut found = None;
    for line in lines {
        match (bearer_token(line.as_bytes()), &found) {
            (None, _) => {}
            (Some(token), Some(other)) if token != *other => return Presented::Ambiguous,
            (token, _) => found = token,
        }
    }
    found.map_or(Presented::None, Presented::token)
}

fn bearer_token(line: &[u8]) -> Option<SessionToken> {
    let (scheme, rest) = line.trim_ascii().split_at_checked(BEARER.len())?;
    // Between scheme and credentials there are only spaces (RFC 9110, section 11.4).
    let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
    if spaces == 0 || !scheme.eq_ignore_ascii_case(BEARER) {
        return None;
    }
    SessionToken::parse(&rest[spaces..])
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn presented(lines: &[&str]) -> Presented {
        let lines = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
        bearer(with_lines(lines).iter())
    }

    fn with_lines(lines: Vec<Vec<u8>>) -> Vec<HeaderValue> {
        let line = |line: Vec<u8>| HeaderValue::try_from(line).ok();
        lines.into_iter().filter_map(line).collect()
    }

    #[test]
    fn a_bearer_token_is_read_whatever_the_case_of_the_scheme() {
        let token = SessionToken::random();
        for scheme in ["Bearer ", "bearer ", "BEARER ", "Bearer    ", " \tBearer "] {
            let line = format!("{scheme}{}", token.expose());
            assert_eq!(presented(&[&line]), Presented::token(token.clone()), "{line}");
        }
        let spaced = format!("Bearer {} ", token.expose());
        assert_eq!(presented(&[&spaced]), Presented::token(token));
    }

    #[test]
    fn credentials_of_others_are_none_of_ours() {
        let text = SessionToken::random().expose();
        for line in [
            "",
            "Bearer",
            "Bearer ",
            "Basic dXNlcjpwYXNz",
            "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.",
            &text,
            &format!("Bearer{text}"),
            &format!("Bearer\t{text}"),
            &format!("Basic {text}"),
            &format!("Bearers {text}"),
            &format!("Bearer \"{text}\""),
            &format!("Bearer {text}="),
            &format!("Bearer {text}, Bearer {text}"),
            &format!("Bearer {text} {text}"),
            &format!("Bearer {}", &text[1..]),
        ] {
            assert_eq!(presented(&[line]), Presented::None, "{line}");
        }
        assert_eq!(presented(&[]), Presented::None);
    }

    #[test]
    fn two_different_bearer_tokens_are_ambiguous_and_a_repeated_one_is_one() {
        let [one, two] = [(); 2].map(|()| SessionToken::random());
        let [a, b] = [&one, &two].map(|token| format!("Bearer {}", token.expose()));
        assert_eq!(presented(&[&a, &b]), Presented::Ambiguous);
        assert_eq!(presented(&[&a, "Basic x", &a]), Presented::token(one));
        assert_eq!(presented(&["Bearer a.b.c", &b]), Presented::token(two));
    }

    proptest! {
        #[test]
        fn no_authorization_line_panics(
            lines in vec(("([Bb]earer ?)?", vec(any::<u8>(), 0..50)), 0..4),
        ) {
            let lines = lines.into_iter();
            let lines = lines.map(|(scheme, rest)| [scheme.into_bytes(), rest].concat());
            bearer(with_lines(lines.collect()).iter());
        }
    }
}
