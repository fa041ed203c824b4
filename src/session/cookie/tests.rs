use proptest::{collection::vec, prelude::*};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn token() -> SessionToken {
    SessionToken::from_bytes([0; 32])
}

fn other_token() -> SessionToken {
    SessionToken::from_bytes([1; 32])
}

fn cookies() -> Cookies {
    CookieSettings::new().build("sid").unwrap()
}

fn with_lines<L: AsRef<[u8]>>(lines: impl IntoIterator<Item = L>) -> Vec<HeaderValue> {
    let value = |line: L| HeaderValue::from_bytes(line.as_ref()).unwrap();
    lines.into_iter().map(value).collect()
}

/// With the token's text where a line says TOKEN, and another's where it says OTHER.
fn read(cookies: &Cookies, lines: &[&str]) -> Presented {
    let (token, other) = (token().expose(), other_token().expose());
    let line = |line: &&str| line.replace("TOKEN", &token).replace("OTHER", &other);
    cookies.read(with_lines(lines.iter().map(line)).iter())
}

fn written(cookies: &Cookies, life_left: Duration) -> String {
    cookies.write(&token(), life_left).to_str().unwrap().to_owned()
}

/// Name and value, as a browser sends them back.
fn sent_back(set_cookie: &HeaderValue) -> String {
    set_cookie.to_str().unwrap().split(';').next().unwrap().to_owned()
}

fn error(settings: CookieSettings) -> CookieError {
    settings.build("sid").unwrap_err()
}

#[test]
fn the_texts_of_set_cookie_are_these() {
    let new = CookieSettings::new;
    let golden: [(CookieSettings, &str); 9] = [
        (new(), "__Host-sid=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=86400"),
        (new().until_browser_closes(), "__Host-sid=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/"),
        (
            new().with_same_site(SameSite::Strict),
            "__Host-sid=TOKEN; HttpOnly; SameSite=Strict; Secure; Path=/; Max-Age=86400",
        ),
        (
            new().with_same_site(SameSite::None).partitioned(),
            "__Host-sid=TOKEN; HttpOnly; SameSite=None; Partitioned; Secure; Path=/; Max-Age=86400",
        ),
        (
            new().with_domain("example.com"),
            "__Secure-sid=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/; Domain=example.com; Max-Age=86400",
        ),
        (
            new().with_path("/admin"),
            "__Secure-sid=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/admin; Max-Age=86400",
        ),
        (
            new().with_name("JSESSIONID"),
            "JSESSIONID=TOKEN; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=86400",
        ),
        (
            new().insecure_for_development(),
            "sid=TOKEN; HttpOnly; SameSite=Lax; Path=/; Max-Age=86400",
        ),
        (
            new().insecure_for_development().with_domain(".example.test").with_path("/a"),
            "sid=TOKEN; HttpOnly; SameSite=Lax; Path=/a; Domain=example.test; Max-Age=86400",
        ),
    ];
    for (settings, expected) in golden {
        let cookies = settings.build("sid").unwrap();
        assert_eq!(written(&cookies, DAY), expected.replace("TOKEN", &token().expose()));
        // The removal differs in nothing but the value and the end.
        let ends = "; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT";
        let removal = expected.replace("TOKEN", "").replace("; Max-Age=86400", "") + ends;
        assert_eq!(cookies.removal(), removal);
    }
}

#[test]
fn the_age_is_what_is_left_of_the_life_rounded_up_and_at_most_400_days() {
    for (left, age) in [
        (Duration::ZERO, 0),
        (Duration::from_nanos(1), 1),
        (Duration::from_millis(1_001), 2),
        (400 * DAY, 34_560_000),
        (400 * DAY + Duration::from_nanos(1), 34_560_000),
        (Duration::MAX, 34_560_000),
    ] {
        let text = written(&cookies(), left);
        assert!(text.ends_with(&format!("; Max-Age={age}")), "{text}");
    }
}

#[test]
fn a_written_token_is_marked_as_secret() {
    assert_eq!(format!("{:?}", cookies().write(&token(), DAY)), "Sensitive");
}

#[test]
fn a_token_is_read_from_any_line_and_any_place_in_it() {
    let found = Presented::token(token());
    for lines in [
        &["__Host-sid=TOKEN"][..],
        &["a=b; __Host-sid=TOKEN; c=d"],
        &["a=b;__Host-sid=TOKEN;c=d"],
        &[" \t__Host-sid=TOKEN\t "],
        &["a=b", "c", "__Host-sid=TOKEN", ""],
        &["sid=OTHER; __Host-sid=TOKEN"],
        &["__host-sid=OTHER; __HOST-SID=OTHER; __Host-sid=TOKEN"],
        &["__Host-sid2=OTHER; a__Host-sid=OTHER; __Host-sid=TOKEN"],
        &["__Host-sid; __Host-sid =OTHER; =__Host-sid=OTHER; __Host-sid=TOKEN"],
        &["a=\"; __Host-sid=TOKEN; b=\""],
        &["$Version=1; a=\"x; __Host-sid=TOKEN"],
        &["a=ü; __Host-sid=TOKEN; b=\u{2000}"],
    ] {
        assert_eq!(read(&cookies(), lines), found, "{lines:?}");
    }
}

#[test]
fn bytes_that_are_no_text_do_not_hide_the_cookie() {
    let ours = [b"__Host-sid=", token().expose().as_bytes()].concat();
    let line = [b"a=\xff\xfe\x80; ", &ours[..], b"; \xc3=\x28"].concat();
    assert_eq!(cookies().read(with_lines([line]).iter()), Presented::token(token()));
}

#[test]
fn without_the_exact_name_there_is_no_cookie() {
    for lines in [
        &[][..],
        &[""],
        &[";;;; ;"],
        &["sid=TOKEN"],
        &["__host-sid=TOKEN"],
        &["__Host-sid"],
        &["__Host-sidTOKEN"],
        &["__Host-sid =TOKEN"],
        &["__Host%2Dsid=TOKEN"],
        &["\"__Host-sid\"=TOKEN"],
        &["a=b, __Host-sid=TOKEN"],
        // What a browser takes for another name, and a sister host may therefore set.
        &["\u{2000}__Host-sid=TOKEN"],
        &["\u{85}__Host-sid=TOKEN; \u{a0}__Host-sid=TOKEN"],
    ] {
        assert_eq!(read(&cookies(), lines), Presented::None, "{lines:?}");
    }
}

#[test]
fn a_value_of_any_other_spelling_is_malformed() {
    let text = token().expose();
    for value in [
        "",
        "x",
        "\"TOKEN\"",
        "%41TOKEN",
        "TOKEN=",
        "TOKENA",
        "=TOKEN",
        "TOKEN TOKEN",
        "TOKEN,",
        "TOKEN\u{a0}",
        "deleted",
        &text[1..],
        &format!("{}%41", &text[3..]),
        &format!("{}B", &text[1..]),
        &format!("{}+", &text[1..]),
        &format!("{} ", &text[1..]),
    ] {
        let line = format!("a=b; __Host-sid={value}; c=d");
        assert_eq!(read(&cookies(), &[&line]), Presented::Malformed, "{line}");
    }
}

#[test]
fn two_different_values_are_ambiguous_and_a_repeated_one_is_one() {
    for lines in [
        &["__Host-sid=TOKEN; __Host-sid=OTHER"][..],
        &["__Host-sid=TOKEN", "__Host-sid=OTHER"],
        &["__Host-sid=TOKEN; a=b; __Host-sid=junk"],
        &["__Host-sid=; __Host-sid=TOKEN"],
        &["__Host-sid=\"TOKEN\"; __Host-sid=TOKEN"],
        &["__Host-sid=a", "__Host-sid=b"],
        &["__Host-sid=TOKEN; __Host-sid=TOKEN; __Host-sid=OTHER"],
    ] {
        assert_eq!(read(&cookies(), lines), Presented::Ambiguous, "{lines:?}");
    }
    let twice = &["__Host-sid=TOKEN; __Host-sid=TOKEN", "__Host-sid=TOKEN"];
    assert_eq!(read(&cookies(), twice), Presented::token(token()));
    assert_eq!(read(&cookies(), &["__Host-sid=x;__Host-sid=x "]), Presented::Malformed);
}

#[test]
fn a_megabyte_is_malformed_or_somebody_elses() {
    let long = "A".repeat(1 << 20);
    let line = format!("__Host-sid={long}; x={long}");
    assert_eq!(read(&cookies(), &[&line]), Presented::Malformed);
    let line = format!("x={long}{}; __Host-sid=TOKEN", "; y=z".repeat(1 << 18));
    assert_eq!(read(&cookies(), &[&line]), Presented::token(token()));
}

#[test]
fn the_name_is_the_policys_behind_the_strictest_prefix_that_fits() {
    let new = CookieSettings::new;
    for (settings, name) in [
        (new(), "__Host-sid"),
        (new().with_path("/"), "__Host-sid"),
        (new().with_path("/a"), "__Secure-sid"),
        (new().with_domain("example.com"), "__Secure-sid"),
        (new().insecure_for_development(), "sid"),
        (new().with_name("a.B!~"), "a.B!~"),
        (new().with_name("__Host-x"), "__Host-x"),
        (new().with_name("__Host-Http-x"), "__Host-Http-x"),
        (new().with_name("__Http-x").with_path("/a"), "__Http-x"),
        (new().with_name("__secure-x").with_domain("example.com"), "__secure-x"),
    ] {
        assert_eq!(settings.build("sid").unwrap().name(), name);
    }
}

#[test]
fn a_name_that_is_no_token_is_refused() {
    let long = "a".repeat(LONGEST_NAME + 1);
    for name in ["", "a b", "a;b", "a=b", "a,b", "sïd", "a\"", "a\r\nb", "a/b", "a@b", "\0", &long]
    {
        let refused = |result: Result<Cookies, CookieError>| {
            assert_eq!(result.unwrap_err(), CookieError::Name { name: cut(name) });
        };
        refused(CookieSettings::new().with_name(name).build("sid"));
        refused(CookieSettings::new().build(name));
    }
}

#[test]
fn a_prefix_that_the_attributes_do_not_keep_is_refused() {
    let named = |name: &str| CookieSettings::new().with_name(name);
    for (settings, broken) in [
        (named("__Host-x").with_domain("example.com"), "__Host-"),
        (named("__HOST-x").with_path("/a"), "__Host-"),
        (named("__Host-x").insecure_for_development(), "__Host-"),
        (named("__host-http-x").with_path("/a"), "__Host-Http-"),
        (named("__Secure-x").insecure_for_development(), "__Secure-"),
        (named("__http-x").insecure_for_development(), "__Http-"),
    ] {
        match error(settings) {
            CookieError::Prefix { prefix, .. } => assert_eq!(prefix, broken),
            other => panic!("{other:?}"),
        }
    }
    let insecure = CookieSettings::new().insecure_for_development();
    assert!(matches!(insecure.build("__Host-sid"), Err(CookieError::Prefix { .. })));
}

#[test]
fn what_browsers_refuse_is_refused_here() {
    let insecure = || CookieSettings::new().insecure_for_development();
    assert_eq!(error(insecure().with_same_site(SameSite::None)), CookieError::SameSiteNone);
    assert_eq!(error(insecure().partitioned()), CookieError::Partitioned);
    let label = "a".repeat(64);
    let long = ["a"; 128].join(".");
    for domain in ["", ".", "..a", "a..b", "a.", "a b", "a;b", "a; Secure", "ä.de", &label, &long]
    {
        let settings = CookieSettings::new().with_domain(domain);
        assert!(matches!(error(settings), CookieError::Domain { .. }), "{domain}");
    }
    let long = format!("/{}", "a".repeat(LONGEST_PATH));
    for path in ["", "a", "/a;b", "/a b", "/ä", "/\r\n", &long] {
        let settings = CookieSettings::new().with_path(path);
        assert!(matches!(error(settings), CookieError::Path { .. }), "{path}");
    }
}

#[test]
fn an_error_says_what_to_do() {
    let said = [
        error(CookieSettings::new().with_name("a b")),
        error(CookieSettings::new().with_name("__Host-a").with_path("/a")),
        error(CookieSettings::new().with_domain("https://example.com")),
        error(CookieSettings::new().insecure_for_development().partitioned()),
    ]
    .map(|error| error.to_string());
    assert_eq!(
        said,
        [
            "\"a b\" cannot name a cookie: use up to 256 letters, digits, '-' and '_', such as \"sid\"",
            "browsers refuse \"__Host-a\": __Host- allows no domain, no path but \"/\" and no insecure_for_development(); do without these or without the prefix",
            "\"https://example.com\" is no domain: write it as in \"example.com\", in Punycode if it has other letters, without scheme and port",
            "browsers refuse Partitioned without Secure: leave partitioned() out while insecure_for_development() is on, or serve HTTPS",
        ]
    );
}

#[cfg(feature = "tracing")]
#[test]
fn a_weaker_name_and_plain_http_are_warned_of() {
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let warned = |settings: CookieSettings| {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || settings.build("sid").unwrap());
        let text = log.0.lock().unwrap();
        String::from_utf8(text.clone()).unwrap()
    };
    let new = CookieSettings::new;
    assert_eq!(warned(new()), "");
    assert_eq!(warned(new().with_name("x").with_path("/a")), "");
    for settings in [new().with_path("/a"), new().with_domain("example.com")] {
        let text = warned(settings);
        assert!(text.contains("WARN") && text.contains("cookie=__Secure-sid"), "{text}");
    }
    let text = warned(new().insecure_for_development().with_path("/a"));
    assert!(text.contains("plain HTTP") && text.lines().count() == 1, "{text}");
}

fn settings() -> impl Strategy<Value = CookieSettings> {
    let same_site = prop_oneof![Just(SameSite::Lax), Just(SameSite::Strict), Just(SameSite::None)];
    let name = prop::option::of("[a-z!~.-]{1,256}");
    let domain = prop::option::of("[a-z]{1,63}(\\.[a-z0-9-]{1,60}){0,3}");
    let path = prop::option::of("/[!-:<-~]{0,1023}");
    (same_site, name, domain, path, any::<[bool; 3]>(), 0..=2).prop_map(
        |(same_site, name, domain, path, [partitioned, session, insecure], sealed)| {
            let mut settings = CookieSettings::new().with_same_site(same_site);
            settings = name.iter().fold(settings, |settings, name| settings.with_name(name));
            settings = domain.iter().fold(settings, |settings, to| settings.with_domain(to));
            settings = path.iter().fold(settings, |settings, path| settings.with_path(path));
            if session {
                settings = settings.until_browser_closes();
            }
            match (partitioned, insecure) {
                (true, _) => settings = settings.partitioned(),
                (false, true) if same_site != SameSite::None => {
                    settings = settings.insecure_for_development();
                }
                _ => {}
            }
            seal_some(settings, sealed)
        },
    )
}

#[cfg(not(feature = "secure-cookies"))]
fn seal_some(settings: CookieSettings, _how: i32) -> CookieSettings {
    settings
}

#[cfg(feature = "secure-cookies")]
fn seal_some(settings: CookieSettings, how: i32) -> CookieSettings {
    let ring = KeyRing::new(&[3; 32]).unwrap();
    match how {
        1 => settings.signed(ring),
        2 => settings.encrypted(ring),
        _ => settings,
    }
}

/// As a browser reads it.
fn parsed(value: &HeaderValue) -> Cookie<'static> {
    assert!(value.len() <= 4096, "{}", value.len());
    Cookie::parse(value.to_str().unwrap()).unwrap().into_owned()
}

proptest! {
    #[test]
    fn no_cookie_lines_panic(
        lines in vec(vec(any::<u8>(), 0..60), 0..4),
        settings in settings(),
    ) {
        let cookies = settings.build("sid").unwrap();
        let lines = lines.into_iter().flat_map(|line| {
            let named = [cookies.name().as_bytes(), b"=", &line].concat();
            [named, line]
        });
        let lines = lines.filter_map(|line| HeaderValue::try_from(line).ok());
        let read = cookies.read(lines.collect::<Vec<_>>().iter());
        let is_token = matches!(read, Presented::Token { .. });
        prop_assert!(!is_token);
    }

    #[test]
    fn what_was_written_is_read_back_among_other_cookies(
        settings in settings(),
        bytes: [u8; 32],
        before in vec("[!-:<-~é \t]{0,20}", 0..5),
        after in vec("[!-:<-~é \t]{0,20}", 0..5),
        separator in "; ?",
        split in any::<bool>(),
    ) {
        let token = SessionToken::from_bytes(bytes);
        let cookies = settings.build("sid").unwrap();
        let ours = sent_back(&cookies.write(&token, DAY));
        let own = |text: &String| text.trim().starts_with(&format!("{}=", cookies.name()));
        prop_assume!(!before.iter().chain(&after).any(own));
        let pairs = [before, vec![ours], after].concat();
        let headers = if split { with_lines(pairs) } else { with_lines([pairs.join(&separator)]) };
        prop_assert_eq!(cookies.read(headers.iter()), Presented::token(token));
    }

    #[test]
    fn a_removal_has_the_attributes_of_what_it_removes(settings in settings()) {
        let cookies = settings.build("sid").unwrap();
        let [set, removal] = [cookies.write(&token(), DAY), cookies.removal()].map(|v| parsed(&v));
        let attributes = |cookie: &Cookie<'static>| {
            let place = [cookie.name(), cookie.path().unwrap(), cookie.domain().unwrap_or("")];
            let flags = [cookie.secure(), cookie.http_only(), cookie.partitioned()];
            (place.map(str::to_owned), flags, cookie.same_site())
        };
        prop_assert_eq!(attributes(&set), attributes(&removal));
        prop_assert_eq!(set.http_only(), Some(true));
        prop_assert_eq!((removal.value(), removal.max_age()), ("", Some(Seconds::ZERO)));
        prop_assert_eq!(removal.expires_datetime(), Some(OffsetDateTime::UNIX_EPOCH));
    }
}

#[cfg(feature = "secure-cookies")]
mod sealed {
    use super::*;

    fn ring(secrets: &[u8]) -> KeyRing {
        let first = KeyRing::new(&[secrets[0]; 32]).unwrap();
        let rest = secrets[1..].iter();
        rest.fold(first, |ring, &secret| ring.add_previous(&[secret; 32]).unwrap())
    }

    /// Signed and encrypted.
    fn both(secrets: &[u8]) -> [Cookies; 2] {
        let new = CookieSettings::new;
        let settings = [new().signed(ring(secrets)), new().encrypted(ring(secrets))];
        settings.map(|settings| settings.build("sid").unwrap())
    }

    fn value(cookies: &Cookies) -> String {
        let pair = sent_back(&cookies.write(&token(), DAY));
        pair.split_once('=').unwrap().1.to_owned()
    }

    fn open(cookies: &Cookies, value: &str) -> Presented {
        cookies.read(with_lines([format!("{}={value}", cookies.name())]).iter())
    }

    #[test]
    fn what_an_older_release_has_written_is_read() {
        // Made by another implementation of HKDF, HMAC and AES-GCM.
        let [signed, encrypted] = both(&[7]);
        let mac = "EDlmhzJM/TCv+dBJh2xi5sTAtFlwxFGY4KRW3WxNmJ4=";
        assert_eq!(value(&signed), format!("{mac}{}", token().expose()));
        let sealed = "AAECAwQFBgcICQoLj3hXGdxsLNeRNgOVAxAXG5EGs+4qq/cUFiGN+HArEEElbMaZTeccVovN+QyaW81wZvQTcA0K3I4vU9I=";
        assert_eq!(open(&encrypted, sealed), Presented::token(token()));
        assert_eq!(value(&encrypted).len(), sealed.len());
    }

    #[test]
    fn secrets_change_without_ending_a_session() {
        for (old, (during, after)) in
            both(&[1]).iter().zip(both(&[2, 9, 1]).iter().zip(&both(&[2])))
        {
            let renewed = Presented::Token { token: token(), renew: true };
            assert_eq!(open(during, &value(old)), renewed);
            assert_eq!(open(during, &value(during)), Presented::token(token()));
            assert_eq!(open(after, &value(during)), Presented::token(token()));
            assert_eq!(open(after, &value(old)), Presented::Malformed);
            assert_eq!(open(old, &value(during)), Presented::Malformed);
        }
    }

    #[test]
    fn what_no_key_has_made_is_malformed() {
        for cookies in both(&[1, 2]) {
            let value = value(&cookies);
            for at in 0..value.len() {
                let mut forged = value.clone().into_bytes();
                forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
                let forged = String::from_utf8(forged).unwrap();
                assert_eq!(open(&cookies, &forged), Presented::Malformed, "{forged}");
                assert_eq!(open(&cookies, &value[..at]), Presented::Malformed);
                assert_eq!(open(&cookies, &value[at + 1..]), Presented::Malformed);
            }
            let text = token().expose();
            for other in [&text, &format!("{value}A"), &format!("\"{value}\""), &"é".repeat(48)] {
                assert_eq!(open(&cookies, other), Presented::Malformed, "{other}");
            }
        }
    }

    #[test]
    fn a_signed_cookie_is_not_taken_for_an_encrypted_one_nor_for_a_plain_one() {
        let [signed, encrypted] = both(&[1]);
        assert_eq!(open(&signed, &value(&encrypted)), Presented::Malformed);
        assert_eq!(open(&encrypted, &value(&signed)), Presented::Malformed);
        assert_eq!(open(&cookies(), &value(&signed)), Presented::Malformed);
        assert_eq!(open(&cookies(), &value(&encrypted)), Presented::Malformed);
    }

    #[test]
    fn what_is_well_signed_and_no_token_is_malformed() {
        let long = "A".repeat(43);
        for text in [&long[..42], "", &format!("{}=", &long[1..]), &format!("{}B", &long[1..])] {
            let (signed, encrypted) = (ring(&[1]).sign(text.to_owned()), ring(&[1]));
            let encrypted = encrypted.encrypt("__Host-sid", text.to_owned());
            for (cookies, value) in both(&[1]).iter().zip([signed, encrypted]) {
                assert_eq!(open(cookies, &value), Presented::Malformed, "{text}");
            }
        }
    }

    #[test]
    fn an_encrypted_value_belongs_to_one_name() {
        let other = CookieSettings::new().encrypted(ring(&[1])).build("other").unwrap();
        assert_eq!(open(&both(&[1])[1], &value(&other)), Presented::Malformed);
    }

    #[test]
    fn an_encrypted_token_does_not_show() {
        let encrypted = &both(&[1])[1];
        assert_ne!(value(encrypted), value(encrypted));
        assert!(!value(encrypted).contains(&token().expose()[..8]));
    }

    #[test]
    fn short_secrets_are_refused() {
        let short = CookieError::ShortSecret { length: 31 };
        assert_eq!(KeyRing::new(&[1; 31]).unwrap_err(), short);
        assert_eq!(ring(&[1]).add_previous(&[1; 31]).unwrap_err(), short);
        assert!(short.to_string().contains("at least 32 random bytes"));
    }

    #[test]
    fn nothing_shows_a_key() {
        let secret = *b"abcdefghijklmnopqrstuvwxyzABCDEF";
        let ring = KeyRing::new(&secret).unwrap();
        let settings = CookieSettings::new().signed(ring);
        let shown = format!("{settings:?}");
        assert!(shown.contains("seal: Signed(KeyRing { previous: 0, .. })"), "{shown}");
        let built = format!("{:?}", settings.build("sid").unwrap());
        assert_eq!(built, "Cookies { name: \"__Host-sid\", .. }");
    }
}
