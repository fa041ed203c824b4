//! Conditions, versions, deletes, bytes.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use bytes::Bytes;

use super::{
    Harness,
    stage::{RACERS, Stage, alpha, key, key_in, race, tags},
};
use crate::{
    Storage,
    storage::{Get, Identity, Key, Name, Put, PutOutcome, When},
};

/// A lookup returns what was put, and a fence only if one was asked for.
pub async fn a_lookup_returns_what_was_put<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    assert_eq!(stage.get(&key("a")).await, None);
    let version = stage.stored(&key("a"), stage.value("one")).await;
    let lookup = stage.storage.get(&key("a"), Get::new()).await.unwrap();
    assert_eq!(lookup.fence, None, "no fence was asked for");
    let entry = lookup.entry.expect("the entry is alive");
    assert_eq!((entry.value.as_ref(), entry.version), (&b"one"[..], version));
    assert_eq!((entry.life_left, entry.stale), (None, false));
    let lookup = stage.storage.get(&key("a"), Get::new().with_fence()).await.unwrap();
    assert!(lookup.fence.is_some() && lookup.entry.is_some());
}

/// `When::Absent` stores where nothing is, and otherwise returns what is there.
pub async fn an_absent_put_stores_only_where_nothing_is<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let absent = |value| stage.value(value).with_condition(When::Absent);
    let version = stage.stored(&key("a"), absent("one")).await;
    let there = stage.refused(&key("a"), absent("two")).await.expect("the conflict shows it");
    assert_eq!((there.value.as_ref(), there.version), (&b"one"[..], version));
    assert_eq!(stage.live(&key("a")).await.value, "one");
    assert!(stage.delete(&key("a"), When::Always).await);
    stage.stored(&key("a"), absent("three")).await;
}

/// Of many callers that claim one key at once, one wins and all others see its claim.
pub async fn of_64_racing_absent_puts_one_wins<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let long = stage.long();
    let outcomes = race((0..RACERS).map(|n| {
        let storage = stage.storage.clone();
        async move {
            let put = Put::new(n.to_string().into(), long).with_condition(When::Absent);
            (n, storage.put(&key("claim"), put).await.expect("a put works"))
        }
    }))
    .await;
    let winners: Vec<_> = outcomes
        .iter()
        .filter_map(|(n, outcome)| match outcome {
            PutOutcome::Stored(version) => Some((n.to_string(), *version)),
            PutOutcome::Conflict(_) => None,
        })
        .collect();
    let [(value, version)] = &winners[..] else { panic!("{} callers won", winners.len()) };
    for (_, outcome) in &outcomes {
        if let PutOutcome::Conflict(there) = outcome {
            let there = there.as_ref().expect("a loser sees the winner");
            assert_eq!((&there.value[..], there.version), (value.as_bytes(), *version));
        }
    }
}

/// Of many callers that save over one version at once, one wins.
pub async fn of_64_racing_saves_one_wins<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (long, base) = (stage.long(), stage.stored(&key("a"), stage.value("base")).await);
    let outcomes = race((0..RACERS).map(|n| {
        let storage = stage.storage.clone();
        async move {
            let put = Put::new(n.to_string().into(), long).with_condition(When::Version(base));
            storage.put(&key("a"), put).await.expect("a put works")
        }
    }))
    .await;
    let won = outcomes.iter().filter(|outcome| matches!(outcome, PutOutcome::Stored(_))).count();
    assert_eq!(won, 1, "{won} callers saved over one version");
}

/// A put over a version that is no longer there changes nothing and returns what is.
pub async fn a_stale_version_never_overwrites<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let first = stage.stored(&key("a"), stage.value("one")).await;
    let second = stage.stored(&key("a"), stage.save("two", first)).await;
    let there = stage.refused(&key("a"), stage.save("stale", first)).await;
    assert_eq!(there.map(|entry| (entry.value, entry.version)), Some(("two".into(), second)));
    assert_eq!(stage.live(&key("a")).await.value, "two");
    assert!(stage.delete(&key("a"), When::Always).await);
    assert_eq!(stage.refused(&key("a"), stage.save("stale", second)).await, None);
    assert_eq!(stage.get(&key("a")).await, None, "a refused put stores nothing");
    stage.stored(&key("a"), stage.value("three")).await;
    let there = stage.refused(&key("a"), stage.save("stale", second)).await;
    assert_eq!(there.expect("the conflict shows it").value, "three");
}

/// However fast puts follow one another, each has a higher version than the last.
pub async fn versions_rise_with_every_put<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut last = stage.stored(&key("a"), stage.value("first")).await;
    for n in 0..100 {
        let put = match n % 2 {
            0 => stage.value("next"),
            _ => stage.save("saved", last),
        };
        let version = stage.stored(&key("a"), put).await;
        assert!(version > last, "{version:?} after {last:?}");
        assert_eq!(stage.live(&key("a")).await.version, version);
        last = version;
    }
}

/// A key that was deleted and put again, even at once, has a higher version than before: a claim's
/// fencing number never comes back.
pub async fn versions_rise_over_delete_and_put<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut last = stage.stored(&key("a"), stage.value("first")).await;
    for n in 0..20 {
        if n % 5 == 4 {
            stage.stored(&key("a"), stage.value("more")).await;
        }
        let there = stage.live(&key("a")).await.version;
        assert!(stage.delete(&key("a"), When::Version(there)).await);
        let put = stage.value("again").with_condition(When::Absent);
        let version = stage.stored(&key("a"), put).await;
        assert!(version > there && there >= last, "{version:?} after {there:?}");
        last = version;
    }
}

/// A key that expired and is put again has a higher version than before.
pub async fn versions_rise_over_expiry<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let put = Put::new(Bytes::from_static(b"short"), stage.ticks(1));
    stage.stored(&key("a"), put.clone()).await;
    let first = stage.stored(&key("a"), put.clone()).await;
    stage.pass(2).await;
    assert!(stage.stored(&key("a"), put).await > first);
}

/// A delete ends the entry and says whether there was one.
pub async fn a_delete_says_whether_it_deleted<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    assert!(!stage.delete(&key("a"), When::Always).await, "nothing is there");
    let version = stage.stored(&key("a"), stage.value("one")).await;
    assert!(stage.delete(&key("a"), When::Always).await);
    assert!(!stage.delete(&key("a"), When::Always).await, "it is gone already");
    stage.assert_absent(&key("a"), version).await;
}

/// A delete happens only under its condition; `When::Absent` never deletes.
pub async fn a_delete_keeps_to_its_condition<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    assert!(!stage.delete(&key("a"), When::Absent).await);
    let first = stage.stored(&key("a"), stage.value("one")).await;
    let second = stage.stored(&key("a"), stage.value("two")).await;
    assert!(!stage.delete(&key("a"), When::Absent).await);
    assert!(!stage.delete(&key("a"), When::Version(first)).await);
    assert_eq!(stage.live(&key("a")).await.version, second);
    assert!(stage.delete(&key("a"), When::Version(second)).await);
    assert_eq!(stage.get(&key("a")).await, None);
}

/// Of many callers that delete one entry at once, one is told that it did.
pub async fn of_64_racing_deletes_one_wins<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    stage.stored(&key("a"), stage.value("one")).await;
    let deleted = race((0..RACERS).map(|_| {
        let storage = stage.storage.clone();
        async move { storage.delete(&key("a"), When::Always).await.expect("a delete works") }
    }))
    .await;
    assert_eq!(deleted.into_iter().filter(|deleted| *deleted).count(), 1);
}

/// Values may hold any bytes, from none to 1 MiB.
pub async fn any_bytes_are_a_value<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> =
        (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let awkward =
        [&b""[..], b"\0", b"\r\n", b"$-1\r\n", b"nil", b"\xff\xfe\x80", &every_byte, &large];
    for (n, value) in awkward.into_iter().enumerate() {
        let put = Put::new(Bytes::copy_from_slice(value), stage.long());
        let version = stage.stored(&key("a"), put.clone()).await;
        assert!(stage.live(&key("a")).await.value == value, "value {n}");
        let there = stage.refused(&key("a"), put.clone().with_condition(When::Absent)).await;
        assert!(there.expect("the conflict shows it").value == value, "conflict {n}");
        stage.stored(&key("a"), put.with_condition(When::Version(version))).await;
        assert!(stage.live(&key("a")).await.value == value, "saved value {n}");
    }
}

/// Identities may hold any bytes, and different ones never share an entry.
pub async fn any_bytes_are_an_identity<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let (long, longer) = (vec![b'x'; 10_000], vec![b'x'; 10_001]);
    let identities = [
        Identity::global(),
        Identity::new(""),
        Identity::new("").and(""),
        Identity::new("\0"),
        Identity::new("a:b"),
        Identity::new("a").and("b"),
        Identity::new("{a}"),
        Identity::new("*"),
        Identity::new("a\r\nb"),
        Identity::new(b"\xff\xfe\x80"),
        Identity::new(every_byte),
        Identity::new(long),
        Identity::new(longer),
        Identity::new("10.0.0.1"),
        Identity::from(IpAddr::from([10, 0, 0, 1])),
        Identity::from(IpAddr::from([0, 0, 0, 0, 0, 0, 0xa00, 1])),
    ]
    .map(|identity| Key::new(&alpha(), &Name::new("entry"), identity));
    for (n, key) in identities.iter().enumerate() {
        let put = Put::new(n.to_string().into(), stage.long()).with_condition(When::Absent);
        stage.stored(key, put).await;
    }
    for (n, key) in identities.iter().enumerate() {
        assert_eq!(stage.live(key).await.value, n.to_string());
    }
}

/// Keys that differ in the namespace or the detail share nothing.
pub async fn namespaces_and_details_are_separate<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let detail = Key::new(&alpha(), &Name::new("other"), Identity::new("a"));
    let odd = [key_in("al", "pha"), key_in("alpha.entry", "a"), key_in("ALPHA", "a")];
    let keys = [key("a"), key_in("beta", "a"), detail].into_iter().chain(odd);
    let mut versions = HashSet::new();
    for key in keys.clone() {
        let put = stage.value("own").with_condition(When::Absent);
        versions.insert((format!("{key:?}"), stage.stored(&key, put).await));
    }
    assert!(stage.delete(&key("a"), When::Always).await);
    for key in keys.skip(1) {
        assert_eq!(stage.live(&key).await.value, "own", "{key:?}");
    }
}

/// What the arguments of a put may not be is an error of kind `Invalid`, and changes nothing.
pub async fn an_invalid_put_is_refused_and_changes_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.value("one")).await;
    let labels = tags(["t"]);
    let tagged = stage.value("bad").with_tags(&labels);
    stage.invalid(&key("a"), tagged.clone()).await;
    stage.invalid(&key("a"), tagged.clone().with_max_lifetime(stage.long())).await;
    stage.invalid(&key("a"), tagged.clone().with_fence(fence)).await;
    stage.invalid(&key("a"), stage.value("bad").with_fence(fence)).await;
    let save = |put: Put<'static>| put.with_condition(When::Version(version));
    stage.invalid(&key("a"), tagged.with_condition(When::Version(version))).await;
    let saved = stage.fill("bad", fence, &labels).with_condition(When::Version(version));
    stage.invalid(&key("a"), saved).await;
    for short in [Duration::ZERO, Duration::from_micros(999)] {
        let ttl = Put::new(Bytes::from_static(b"bad"), short);
        stage.invalid(&key("a"), ttl.clone()).await;
        stage.invalid(&key("a"), save(ttl)).await;
        stage.invalid(&key("a"), stage.value("bad").with_max_lifetime(short)).await;
        stage.invalid(&key("a"), save(stage.value("bad").with_max_lifetime(short))).await;
    }
    let there = stage.live(&key("a")).await;
    assert_eq!((there.value.as_ref(), there.version), (&b"one"[..], version));
}

/// A handle of hidden type speaks to the same storage in the same way.
pub async fn an_erased_handle_behaves_the_same<H: Harness>(harness: &H) {
    let storage = harness.storage().await;
    let able = storage.capabilities();
    let put = Put::new(Bytes::from_static(b"one"), harness.tick() * 100);
    storage.put(&key("a"), put.clone()).await.expect("a put works");
    let erased = storage.erase();
    assert_eq!(erased.capabilities(), able);
    let there = erased.get(&key("a"), Get::new()).await.expect("a lookup works").entry;
    assert_eq!(there.expect("the entry is alive").value, "one");
    let outcome = erased.put(&key("a"), put.with_condition(When::Absent)).await;
    assert!(matches!(outcome, Ok(PutOutcome::Conflict(Some(_)))));
    assert!(erased.delete(&key("a"), When::Always).await.expect("a delete works"));
}
