//! The scripts against a naive model of the contract, and clause by clause.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use proptest::{prelude::*, sample::select, strategy::ValueTree, test_runner::TestRunner};

use super::{
    super::super::keys::Keys,
    rig::{Rig, START, block_on, cases},
};
use crate::storage::{
    Entry, ErrorKind, Fence, Get, Identity, Invalidation, Key, Lookup, Name, Put, PutOutcome,
    Storage, Tag, Tags, Touch, Version, When,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn namespace() -> Name {
    Name::new("cache")
}

fn key(n: usize) -> Key {
    Key::new(&namespace(), &Name::new("page"), Identity::new(format!("/{n}")))
}

fn tag(n: usize) -> Tag {
    Tag::new(format!("product:{n}"))
}

fn entry_name(rig: &Rig, key: &Key) -> Vec<u8> {
    let keys = Keys { prefix: &rig.prefix, hash_key: &rig.hash_key };
    keys.entry(key, key.digest(&rig.hash_key))
}

fn record_name(rig: &Rig) -> Vec<u8> {
    Keys { prefix: &rig.prefix, hash_key: &rig.hash_key }.record(&namespace())
}

async fn fence(rig: &Rig) -> Fence {
    rig.storage.get(&key(99), Get::new().with_fence()).await.unwrap().fence.unwrap()
}

fn us(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

#[derive(Debug, Clone)]
struct Slot {
    value: Bytes,
    version: u64,
    written: u64,
    expires: u64,
    deadline: Option<u64>,
    fence: Option<Fence>,
    tags: Vec<usize>,
}

/// A record that forgets nothing.
#[derive(Debug, Clone)]
struct Plane {
    generation: u128,
    last: u64,
    hard: HashMap<usize, u64>,
    soft: HashMap<usize, u64>,
}

impl Plane {
    fn new(generation: u128) -> Self {
        Self { generation, last: 0, hard: HashMap::new(), soft: HashMap::new() }
    }

    fn admits(&self, fence: &Fence, tags: &[usize]) -> bool {
        fence.generation() == self.generation
            && fence.stamp() <= self.last
            && tags.iter().all(|tag| self.hard.get(tag).is_none_or(|hard| *hard <= fence.stamp()))
    }
}

/// The contract in words of one clock.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    slots: HashMap<usize, Slot>,
    plane: Option<Plane>,
    fences: Vec<Fence>,
    versions: Vec<u64>,
}

impl Model {
    fn live(&self, n: usize) -> Option<&Slot> {
        let slot = self.slots.get(&n)?;
        let admitted = slot.fence.is_none_or(|fence| {
            self.plane.as_ref().is_some_and(|plane| plane.admits(&fence, &slot.tags))
        });
        (admitted && self.now < slot.expires).then_some(slot)
    }

    fn entry(&self, n: usize) -> Option<Entry> {
        let slot = self.live(n)?;
        let left = |time: u64| Duration::from_micros(time.saturating_sub(self.now));
        let mut entry = Entry::new(
            slot.value.clone(),
            Version::from_u64(slot.version),
            Duration::from_micros(self.now.saturating_sub(slot.written)),
            left(slot.expires),
        );
        entry.life_left = slot.deadline.map(left);
        entry.stale = slot.fence.zip(self.plane.as_ref()).is_some_and(|(fence, plane)| {
            slot.tags.iter().any(|tag| plane.soft.get(tag).is_some_and(|at| *at > fence.stamp()))
        });
        Some(entry)
    }

    /// The fence that a lookup gives; `actual` says what a new record is called.
    fn fence(&mut self, actual: Option<Fence>) -> Option<Fence> {
        let actual = actual?;
        let plane = self.plane.get_or_insert_with(|| Plane::new(actual.generation()));
        let fence = Fence::new(plane.generation, plane.last, actual.epoch());
        self.fences.push(fence);
        Some(fence)
    }

    fn touch(&mut self, n: usize, touch: Touch) {
        if self.live(n).is_some() {
            let (now, slot) = (self.now, self.slots.get_mut(&n).unwrap());
            let wanted = (now + us(touch.ttl)).min(slot.deadline.unwrap_or(u64::MAX));
            if wanted > slot.expires + us(touch.slack) {
                slot.expires = wanted;
            }
        }
    }

    fn holds(&self, n: usize, when: When) -> bool {
        let current = self.live(n).map(|slot| slot.version);
        match when {
            When::Always => true,
            When::Absent => current.is_none(),
            When::Version(version) => current == Some(version.as_u64()),
        }
    }

    fn put(&mut self, n: usize, put: &Put<'_>, tags: &[usize]) -> PutOutcome {
        let admitted = put.fence.is_none_or(|fence| {
            self.plane.as_ref().is_some_and(|plane| plane.admits(&fence, tags))
        });
        if !admitted || !self.holds(n, put.when) {
            return PutOutcome::Conflict(self.entry(n));
        }
        let now = self.now;
        let old = self.slots.remove(&n);
        let version = old.as_ref().map_or(now, |old| now.max(old.version + 1));
        let limit = put.max_lifetime.map(|lifetime| now + us(lifetime));
        let (deadline, fence, tags) = match (put.when, old) {
            (When::Version(_), Some(old)) => {
                (old.deadline.into_iter().chain(limit).min(), old.fence, old.tags)
            }
            _ => (limit, put.fence, tags.to_vec()),
        };
        let expires = (now + us(put.ttl)).min(deadline.unwrap_or(u64::MAX));
        let value = put.value.clone();
        self.slots.insert(n, Slot { value, version, written: now, expires, deadline, fence, tags });
        self.versions.push(version);
        PutOutcome::Stored(Version::from_u64(version))
    }

    fn invalidate(&mut self, tags: &[usize], how: Invalidation, generation: u128) {
        let now = self.now;
        let plane = self.plane.get_or_insert_with(|| Plane::new(generation));
        plane.last = now.max(plane.last + 1);
        let stamps = match how {
            Invalidation::Hard => &mut plane.hard,
            Invalidation::Soft => &mut plane.soft,
        };
        stamps.extend(tags.iter().map(|tag| (*tag, plane.last)));
    }
}

#[derive(Debug, Clone)]
enum Op {
    Turn(i64),
    Get {
        n: usize,
        touch: Option<Touch>,
        fence: bool,
        known: Option<Cond>,
    },
    Put {
        n: usize,
        when: Cond,
        ttl: Duration,
        lifetime: Option<Duration>,
        tags: Vec<usize>,
        fence: Option<usize>,
    },
    Delete {
        n: usize,
        when: Cond,
    },
    Invalidate {
        tags: Vec<usize>,
        how: Invalidation,
    },
    InvalidateAll,
    LoseRecord,
}

#[derive(Debug, Clone, Copy)]
enum Cond {
    Always,
    Absent,
    Current,
    Earlier(usize),
}

fn life() -> impl Strategy<Value = Duration> {
    select(vec![MS, 3 * MS, 10 * MS, SECOND, 3_600 * SECOND, Duration::MAX])
        .prop_map(|life| life.min(crate::storage::LONGEST_LIFE))
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..3_usize;
    let tags = || prop::collection::vec(0..3_usize, 0..3);
    let cond = || {
        prop_oneof![
            2 => Just(Cond::Always),
            2 => Just(Cond::Absent),
            3 => Just(Cond::Current),
            1 => (0..4_usize).prop_map(Cond::Earlier),
        ]
    };
    let touch = prop::option::of((life(), select(vec![Duration::ZERO, MS, SECOND])))
        .prop_map(|touch| touch.map(|(ttl, slack)| Touch { ttl, slack }));
    let how = select(vec![Invalidation::Hard, Invalidation::Soft]);
    prop_oneof![
        4 => select(vec![1, 1, 500, 1_000, 1_000, 2_000, 9_000, 1_000_000, -1, -5_000]).prop_map(Op::Turn),
        5 => (n.clone(), touch, any::<bool>(), prop::option::of(cond()))
            .prop_map(|(n, touch, fence, known)| Op::Get { n, touch, fence, known }),
        6 => (n.clone(), cond(), life(), prop::option::of(life()), tags(), prop::option::weighted(0.7, 0..4_usize))
            .prop_map(|(n, when, ttl, lifetime, tags, fence)| Op::Put { n, when, ttl, lifetime, tags, fence }),
        1 => (n, cond()).prop_map(|(n, when)| Op::Delete { n, when }),
        2 => (tags(), how).prop_map(|(tags, how)| Op::Invalidate { tags, how }),
        1 => prop_oneof![Just(Op::InvalidateAll), Just(Op::LoseRecord)],
    ]
}

fn when(model: &Model, n: usize, cond: Cond) -> When {
    let version = |version| When::Version(Version::from_u64(version));
    match cond {
        Cond::Always => When::Always,
        Cond::Absent => When::Absent,
        Cond::Current => version(model.slots.get(&n).map_or(1, |slot| slot.version)),
        Cond::Earlier(back) => {
            let at = model.versions.len().checked_sub(back + 1);
            version(at.map_or(u64::MAX, |at| model.versions[at]))
        }
    }
}

async fn run(rig: &mut Rig, plan: &[Op]) -> Result<(), String> {
    let () = rig.run(&[b"FLUSHALL"]).await;
    let mut model = Model { now: START, ..Model::default() };
    rig.set_clock(START).await;
    for (at, op) in plan.iter().enumerate() {
        let differ = |expected: &dyn std::fmt::Debug, actual: &dyn std::fmt::Debug| {
            Err(format!("at {at}, {op:?}:\nexpected {expected:#?}\nactual {actual:#?}"))
        };
        match op {
            Op::Turn(by) => {
                model.now = model.now.saturating_add_signed(*by);
                rig.set_clock(model.now).await;
            }
            Op::Get { n, touch, fence, known } => {
                let known = known.and_then(|known| match when(&model, *n, known) {
                    When::Version(version) => Some(version),
                    When::Always | When::Absent => None,
                });
                let large_value = at % 2 == 1;
                let get = Get { touch: *touch, fence: *fence, known, large_value };
                let actual = rig.storage.get(&key(*n), get).await.unwrap();
                if let Some(touch) = touch {
                    model.touch(*n, *touch);
                }
                let entry = model.entry(*n).map(|entry| entry.without_known(known));
                let expected = Lookup::new(entry, model.fence(actual.fence));
                if actual != expected || actual.fence.is_some() != *fence {
                    return differ(&expected, &actual);
                }
            }
            Op::Put { n, when: cond, ttl, lifetime, tags, fence } => {
                let mut put = Put::new(Bytes::from(format!("{at}")), *ttl);
                put.when = when(&model, *n, *cond);
                put.fence = fence.and_then(|back| {
                    model.fences.len().checked_sub(back + 1).map(|at| model.fences[at])
                });
                let saves = matches!(put.when, When::Version(_));
                put.max_lifetime = match lifetime {
                    None if put.fence.is_some() && !saves => Some(SECOND),
                    lifetime => *lifetime,
                };
                let tags = if put.fence.is_none() || saves { &[][..] } else { &tags[..] };
                let labels: Vec<_> = tags.iter().map(|n| tag(*n)).collect();
                put.tags = &labels;
                let actual = rig.storage.put(&key(*n), put.clone()).await.unwrap();
                let expected = model.put(*n, &put, tags);
                if actual != expected {
                    return differ(&expected, &actual);
                }
            }
            Op::Delete { n, when: cond } => {
                let when = when(&model, *n, *cond);
                let actual = rig.storage.delete(&key(*n), when).await.unwrap();
                let expected =
                    when != When::Absent && model.live(*n).is_some() && model.holds(*n, when);
                if expected {
                    model.slots.remove(n);
                }
                if actual != expected {
                    return differ(&expected, &actual);
                }
            }
            Op::Invalidate { tags, how } => {
                let labels: Vec<_> = tags.iter().map(|n| tag(*n)).collect();
                rig.storage.invalidate(&namespace(), Tags::Any(&labels), *how).await.unwrap();
                let generation = generation(rig).await;
                model.invalidate(tags, *how, generation);
            }
            Op::InvalidateAll => {
                let soft = Invalidation::Soft;
                rig.storage.invalidate(&namespace(), Tags::All, soft).await.unwrap();
                model.plane = Some(Plane::new(generation(rig).await));
            }
            Op::LoseRecord => {
                let name = record_name(rig);
                let _: u64 = rig.run(&[b"DEL", &name]).await;
                model.plane = None;
            }
        }
    }
    rig.check_keys();
    Ok(())
}

async fn generation(rig: &mut Rig) -> u128 {
    let name = record_name(rig);
    let bytes: Vec<u8> = rig.run(&[b"HGET", &name, b"g"]).await;
    u128::from_be_bytes(bytes.try_into().unwrap())
}

#[test]
fn entries_live_and_die_as_in_the_contract() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let mut runner = TestRunner::default();
        for _ in 0..cases(150) {
            let tree = prop::collection::vec(op(), 1..60).new_tree(&mut runner).unwrap();
            let mut plan = tree.current();
            let Err(mut message) = run(&mut rig, &plan).await else { continue };
            for i in (0..plan.len()).rev() {
                let mut shorter = plan.clone();
                shorter.remove(i);
                if let Err(other) = run(&mut rig, &shorter).await {
                    (plan, message) = (shorter, other);
                }
            }
            panic!("{message}\nafter {plan:#?}");
        }
        // Only lookups without the script begin with a `PING`.
        let commands = rig.commands().await;
        assert!(commands["ping"] > commands["evalsha"] / 20, "{commands:?}");
    });
}

/// An entry, when it is touched after it was put, and how.
fn touching() -> impl Strategy<Value = (u64, Option<u64>, i64, Touch)> {
    let times = (1_000..5_000_000_u64, prop::option::of(1_000..9_000_000_u64));
    (times, 1..5_000_000_u64, 1..1_000_000_u64, any::<bool>(), -3..=3_i64).prop_flat_map(
        |((life, lifetime), ttl, slack, capped, edge)| {
            let expires = life.min(lifetime.unwrap_or(u64::MAX));
            let slack = match lifetime {
                // About what is left to the deadline.
                Some(lifetime) if capped => (lifetime - expires).saturating_add_signed(edge).max(1),
                _ => slack,
            };
            let at_slack = (expires + slack) as i64 - ttl as i64 + edge;
            let [ttl, slack] = [ttl, slack].map(Duration::from_micros);
            let elapsed = prop_oneof![
                3 => Just(at_slack),
                1 => Just(expires as i64 + edge),
                2 => -2_000_000..5_000_000_i64,
            ];
            (Just(life), Just(lifetime), elapsed, Just(Touch { ttl, slack }))
        },
    )
}

#[test]
fn a_touch_is_due_without_the_script_exactly_where_it_is_in_the_script() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let mut runner = TestRunner::default();
        let (storage, stranger) = (rig.storage.clone(), rig.another_storage().await);
        stranger.ping().await.unwrap();
        let fence = fence(&rig).await;
        let tags = [tag(1)];
        let cases = cases(300) as usize;
        let (mut due, mut alive) = (0, 0);
        let () = rig.run(&[b"CONFIG", b"RESETSTAT"]).await;
        for case in 0..cases {
            let (life, lifetime, elapsed, touch) =
                touching().new_tree(&mut runner).unwrap().current();
            let wanted = format!("{life} of {lifetime:?}, after {elapsed}: {touch:?}");
            rig.set_clock(START).await;
            let mut put = Put::new("value".into(), Duration::from_micros(life));
            put.max_lifetime = lifetime.map(Duration::from_micros);
            let mut get = Get::new().with_touch(touch);
            if lifetime.is_some() {
                put = put.with_fence(fence).with_tags(&tags);
                get = get.with_fence();
            }
            // What one of them has not seen it reads by the script.
            let keys = [2 * case, 2 * case + 1].map(|n| key(1_000 + n));
            for key in &keys {
                storage.put(key, put.clone()).await.unwrap();
            }
            let names = keys.each_ref().map(|key| entry_name(&rig, key));
            let before: Vec<u8> = rig.run(&[b"GET", &names[0]]).await;
            rig.set_clock(START.saturating_add_signed(elapsed)).await;
            let answer = storage.get(&keys[0], get).await.unwrap();
            let mut of_script = stranger.get(&keys[1], get).await.unwrap();
            of_script.fence = answer.fence;
            assert_eq!(answer, of_script, "{wanted}");
            let after: Vec<Vec<u8>> = rig.run(&[b"MGET", &names[0], &names[1]]).await;
            assert_eq!(after[0][19..], after[1][19..], "{wanted}");
            let mut lives = [0_i64; 2];
            for (life, name) in lives.iter_mut().zip(&names) {
                *life = rig.run(&[b"PTTL", name]).await;
            }
            assert!(lives[0].abs_diff(lives[1]) < 10_000, "{wanted}: {lives:?}");
            alive += usize::from(answer.entry.is_some());
            due += u64::from(after[0] != before);
        }
        assert!(due > cases as u64 / 10 && alive > 2 * due as usize, "{due}, {alive} of {cases}");
        let commands = rig.commands().await;
        // A connection that idled is asked by a `PING` as well.
        assert!(commands["ping"] >= cases as u64, "each is tried without the script");
        assert_eq!(commands["evalsha"], 3 * cases as u64 + due, "two puts and the other's lookup");
        assert_eq!(commands["setrange"], 2 * due);
    });
}

#[test]
fn any_bytes_under_a_name_of_ours_are_an_error_and_never_served() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let mut runner = TestRunner::default();
        let name = entry_name(&rig, &key(0));
        let put = |when| Put::new(Bytes::from_static(b"new"), SECOND).with_condition(when);
        let fence = fence(&rig).await;
        let tags = [tag(1), tag(2)];
        let tagged = put(When::Always).with_max_lifetime(SECOND).with_fence(fence).with_tags(&tags);
        rig.storage.put(&key(0), tagged).await.unwrap();
        let good: Vec<u8> = rig.run(&[b"GET", &name]).await;
        let start = good.len() - 3;

        let garbage = prop_oneof![
            prop::collection::vec(any::<u8>(), 1..200),
            // An entry with some bytes of its header changed, or cut short.
            (prop::collection::vec((0..start, any::<u8>()), 1..4), 1..=good.len()).prop_map({
                let good = good.clone();
                move |(changes, len)| {
                    let mut bytes = good.clone();
                    for (at, byte) in changes {
                        bytes[at] = byte;
                    }
                    bytes.truncate(len.max(60));
                    bytes
                }
            }),
        ];
        for _ in 0..cases(400) {
            let bytes = garbage.new_tree(&mut runner).unwrap().current();
            let () = rig.run(&[b"SET", &name, &bytes, b"PX", b"60000"]).await;
            let ours = bytes.starts_with(&good[..2]) && bytes.get(3..19) == Some(&good[3..19]);
            let looked_up = rig.storage.get(&key(0), Get::new().with_fence()).await;
            match &looked_up {
                Ok(_) => assert!(ours, "{bytes:?}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}, {bytes:?}"),
            }
            if looked_up.is_err() {
                for when in [When::Absent, When::Version(Version::from_u64(START))] {
                    let error = rig.storage.put(&key(0), put(when)).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                }
                let error = rig.storage.delete(&key(0), When::Always).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                let still: Vec<u8> = rig.run(&[b"GET", &name]).await;
                assert_eq!(still, bytes);
            }
            let replaced = rig.storage.put(&key(0), put(When::Always)).await.unwrap();
            assert!(matches!(replaced, PutOutcome::Stored(_)), "{bytes:?}");
        }

        // The entry of another key, copied under this one's name.
        let other = entry_name(&rig, &key(1));
        rig.storage.put(&key(1), put(When::Always)).await.unwrap();
        let _: u64 = rig.run(&[b"COPY", &other, &name, b"REPLACE"]).await;
        let error = rig.storage.get(&key(0), Get::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        // A format of later.
        let later = [&good[..1], &[2], &good[2..]].concat();
        let () = rig.run(&[b"SET", &name, &later, b"PX", b"60000"]).await;
        let error = rig.storage.delete(&key(0), When::Always).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    });
}

#[test]
fn a_fence_of_a_connection_that_is_gone_or_from_the_future_is_refused() {
    block_on(async {
        let rig = Rig::on_virtual_time().await;
        let fence = fence(&rig).await;
        let put = |fence| {
            Put::new(Bytes::from_static(b"v"), SECOND).with_max_lifetime(SECOND).with_fence(fence)
        };
        let stored = rig.storage.put(&key(0), put(fence)).await.unwrap();
        assert!(matches!(stored, PutOutcome::Stored(_)));
        let (generation, stamp, epoch) = (fence.generation(), fence.stamp(), fence.epoch());
        for wrong in [
            Fence::new(generation, stamp, epoch + 1),
            Fence::new(generation, stamp + 1, epoch),
            Fence::new(generation, u64::MAX, epoch),
            Fence::new(generation ^ 1, stamp, epoch),
        ] {
            match rig.storage.put(&key(0), put(wrong)).await.unwrap() {
                PutOutcome::Conflict(Some(current)) => assert_eq!(current.value, "v"),
                other => panic!("{other:?} for {wrong:?}"),
            }
        }
    });
}

#[test]
fn values_of_no_bytes_and_of_a_mebibyte_with_many_tags_come_back() {
    block_on(async {
        let rig = Rig::on_server_time().await;
        let fence = fence(&rig).await;
        let all: Vec<_> = (0..super::super::super::codec::MOST_TAGS + 1).map(tag).collect();
        for (len, count) in [(0, 0), (0, 16), (1, 17), (1 << 20, 16), (1 << 20, 4_000)] {
            let value: Bytes = (0..len).map(|n: u32| n as u8).collect();
            let put = Put::new(value.clone(), 60 * SECOND)
                .with_max_lifetime(60 * SECOND)
                .with_fence(fence)
                .with_tags(&all[..count]);
            let PutOutcome::Stored(version) = rig.storage.put(&key(0), put).await.unwrap() else {
                panic!("stored");
            };
            let entry = rig.storage.get(&key(0), Get::new()).await.unwrap().entry.unwrap();
            assert_eq!((&entry.value, entry.version), (&value, version));
            let get = Get::new().with_known(version);
            let known = rig.storage.get(&key(0), get).await.unwrap().entry.unwrap();
            assert!(known.unchanged && known.value.is_empty() && known.version == version);
            let get = Get::new().with_known(Version::from_u64(version.as_u64() - 1));
            let other = rig.storage.get(&key(0), get).await.unwrap().entry.unwrap();
            assert!(!other.unchanged && other.value == value);
            let save = Put::new(Bytes::from_static(b"saved"), 60 * SECOND)
                .with_condition(When::Version(version));
            assert!(matches!(rig.storage.put(&key(0), save).await.unwrap(), PutOutcome::Stored(_)));
        }
        let hard = Invalidation::Hard;
        rig.storage.invalidate(&namespace(), Tags::Any(&all[3_999..]), hard).await.unwrap();
        assert_eq!(rig.storage.get(&key(0), Get::new()).await.unwrap().entry, None);
        let put = Put::new(Bytes::new(), SECOND)
            .with_max_lifetime(SECOND)
            .with_fence(fence)
            .with_tags(&all);
        let error = rig.storage.put(&key(0), put).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    });
}

#[test]
fn a_record_forgets_tags_that_nothing_can_carry_and_raises_its_floor() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let name = record_name(&rig);
        let hard = Invalidation::Hard;
        let before = fence(&rig).await;
        let put = |fence| {
            Put::new(Bytes::from_static(b"v"), SECOND).with_max_lifetime(SECOND).with_fence(fence)
        };
        rig.storage.put(&key(0), put(before)).await.unwrap();
        let many: Vec<_> = (0..2_000).map(tag).collect();
        rig.storage.invalidate(&namespace(), Tags::Any(&many), hard).await.unwrap();
        let young = fence(&rig).await;
        // A minute more, for what was being made.
        let forgotten = START + us(61 * SECOND);
        rig.set_clock(forgotten).await;
        rig.storage.invalidate(&namespace(), Tags::Any(&[tag(0)]), hard).await.unwrap();
        let known: usize = rig.run(&[b"HLEN", &name]).await;
        assert_eq!(known, 2_005, "an entry of then may still be alive");

        rig.set_clock(forgotten + 1).await;
        for _ in 0..200 {
            rig.storage.invalidate(&namespace(), Tags::Any(&[tag(0)]), hard).await.unwrap();
        }
        let known: usize = rig.run(&[b"HLEN", &name]).await;
        assert!(known <= 64 + 5, "{known} are left");
        let refused = rig.storage.put(&key(1), put(before)).await.unwrap();
        assert_eq!(refused, PutOutcome::Conflict(None), "its tags may have been forgotten");
        let stored = rig.storage.put(&key(1), put(young)).await.unwrap();
        assert!(matches!(stored, PutOutcome::Stored(_)));
    });
}

#[test]
fn a_record_that_was_damaged_counts_as_lost_and_is_made_anew() {
    block_on(async {
        let mut rig = Rig::on_server_time().await;
        let name = record_name(&rig);
        let words = ["nan", "-nan", "inf", "1e300", "-5", "x", "", "9007199254740992"];
        let fields = words.map(|word| [("l", word), ("f", word), ("m", word)]).concat();
        let more = [
            ("g", "short"),
            ("f", "9007199254740991"),
            ("c", "x"),
            ("c", "99999999999999999999999"),
        ];
        for (field, word) in fields.into_iter().chain(more) {
            let wrong = format!("{field} = {word}");
            // Of more tags than are left alone, so that the cursor is used.
            let tags: Vec<_> = (0..100).map(tag).collect();
            rig.storage
                .invalidate(&namespace(), Tags::Any(&tags), Invalidation::Hard)
                .await
                .unwrap();
            let _: u64 = rig.run(&[b"HSET", &name, field.as_bytes(), word.as_bytes()]).await;

            let fence = fence(&rig).await;
            let put = Put::new("x".into(), SECOND).with_max_lifetime(SECOND);
            let put = put.with_fence(fence).with_tags(&tags[..1]);
            let outcome = rig.storage.put(&key(1), put.clone()).await.unwrap();
            assert!(matches!(outcome, PutOutcome::Stored(_)), "{wrong}: {outcome:?}");
            assert!(rig.storage.get(&key(1), Get::new()).await.unwrap().entry.is_some(), "{wrong}");
            let hard = Invalidation::Hard;
            rig.storage.invalidate(&namespace(), Tags::Any(&tags), hard).await.expect(&wrong);
            assert_eq!(rig.storage.get(&key(1), Get::new()).await.unwrap().entry, None, "{wrong}");
            let late = rig.storage.put(&key(1), put).await.unwrap();
            assert_eq!(late, PutOutcome::Conflict(None), "{wrong}");
        }
        rig.check_keys();
    });
}

#[test]
fn a_server_without_memory_to_spare_still_reads_touches_and_ends_entries() {
    block_on(async {
        let mut rig = Rig::on_server_time().await;
        rig.storage.put(&key(1), Put::new("x".into(), SECOND)).await.unwrap();
        let _: () = rig.run(&[b"CONFIG", b"SET", b"maxmemory", b"1"]).await;
        let full = rig.storage.put(&key(2), Put::new("x".into(), SECOND)).await.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Full);
        let touch = Touch { ttl: 60 * SECOND, slack: MS };
        let get = Get::new().with_touch(touch).with_fence();
        let lookup = rig.storage.get(&key(1), get).await.unwrap();
        assert!(lookup.fence.is_some() && lookup.entry.unwrap().ttl > 59 * SECOND);
        assert!(rig.storage.delete(&key(1), When::Always).await.unwrap());
        rig.storage.invalidate(&namespace(), Tags::All, Invalidation::Hard).await.unwrap();
    });
}

#[test]
fn a_record_stays_bounded_and_forgets_the_oldest_first() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let name = record_name(&rig);
        let year = 366 * 86_400 * SECOND;
        let put = Put::new(Bytes::from_static(b"v"), SECOND)
            .with_max_lifetime(year)
            .with_fence(fence(&rig).await);
        rig.storage.put(&key(0), put).await.unwrap();
        for round in 0..23_u64 {
            rig.set_clock(START + round * us(SECOND)).await;
            let tags: Vec<_> =
                (0..5_000).map(|n| Tag::new((round * 5_000 + n).to_be_bytes())).collect();
            rig.storage
                .invalidate(&namespace(), Tags::Any(&tags), Invalidation::Hard)
                .await
                .unwrap();
        }
        let known: u64 = rig.run(&[b"HLEN", &name]).await;
        assert!(known < 106_000, "{known}");
        let floor: u64 = rig.run(&[b"HGET", &name, b"f"]).await;
        assert!((START..START + 12 * us(SECOND)).contains(&floor), "{}", floor - START);
    });
}

#[test]
fn the_record_lives_as_long_as_every_entry_that_it_judges() {
    block_on(async {
        let mut rig = Rig::on_server_time().await;
        let name = record_name(&rig);
        let fence = fence(&rig).await;
        let hour: i64 = rig.run(&[b"PTTL", &name]).await;
        assert!((3_590_000..=3_600_000).contains(&hour));
        let month = 30 * 86_400 * SECOND;
        let put =
            Put::new(Bytes::from_static(b"v"), SECOND).with_max_lifetime(month).with_fence(fence);
        rig.storage.put(&key(0), put.clone()).await.unwrap();
        let put = put.with_max_lifetime(SECOND);
        rig.storage.put(&key(1), put).await.unwrap();
        rig.storage
            .invalidate(&namespace(), Tags::Any(&[tag(0)]), Invalidation::Hard)
            .await
            .unwrap();
        rig.storage.invalidate(&namespace(), Tags::All, Invalidation::Hard).await.unwrap();
        let life: u128 = rig.run(&[b"PTTL", &name]).await;
        assert!(life >= month.as_millis());
        rig.check_keys();
    });
}

/// Values that a purge has ended, and fences from after it beside values from before: neither is
/// ever seen, however lookups without the script and the writes of another process interleave.
#[test]
fn no_lookup_sees_what_was_purged_before_it_nor_a_fence_newer_than_the_value() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut rig = Rig::on_server_time().await;
        let writer = rig.another_storage().await;
        let purged = Arc::new(AtomicU64::new(0));
        let readers: Vec<_> = (0..16)
            .map(|n| {
                let (storage, purged) = (rig.storage.clone(), Arc::clone(&purged));
                tokio::spawn(async move {
                    let (mut seen, mut known) = (0_u32, None);
                    loop {
                        let before = purged.load(SeqCst);
                        if before == u64::MAX {
                            return seen;
                        }
                        let mut get = Get::new().with_fence();
                        get.known = known.filter(|_| n % 3 == 0);
                        // Due once for each entry, or not at all.
                        let touched = |secs| Touch { ttl: secs * SECOND, slack: SECOND };
                        get.touch = [None, None, Some(touched(60)), Some(touched(30))][n % 4];
                        let lookup = storage.get(&key(0), get).await.unwrap();
                        let Some(entry) = lookup.entry else { continue };
                        if !entry.unchanged {
                            let number: [u8; 8] = entry.value[..8].try_into().unwrap();
                            assert!(u64::from_be_bytes(number) > before, "it was purged");
                            let stamp: [u8; 8] = entry.value[8..].try_into().unwrap();
                            let fence = lookup.fence.unwrap().stamp();
                            assert_eq!(fence, u64::from_be_bytes(stamp), "of another instant");
                        }
                        known = Some(entry.version);
                        seen += 1;
                    }
                })
            })
            .collect();
        for n in 1..=300_u64 {
            let lookup = writer.get(&key(0), Get::new().with_fence()).await.unwrap();
            let fence = lookup.fence.unwrap();
            let value = [n.to_be_bytes(), fence.stamp().to_be_bytes()].concat();
            let tags = [tag(1), tag(2 + n as usize % 2)];
            let put = Put::new(value.into(), 30 * SECOND)
                .with_max_lifetime(60 * SECOND)
                .with_fence(fence)
                .with_tags(&tags);
            let outcome = writer.put(&key(0), put).await.unwrap();
            assert!(matches!(outcome, PutOutcome::Stored(_)), "{outcome:?}");
            tokio::time::sleep(MS).await;
            let purge = Tags::Any(&tags[..1]);
            writer.invalidate(&namespace(), purge, Invalidation::Hard).await.unwrap();
            purged.store(n, SeqCst);
        }
        purged.store(u64::MAX, SeqCst);
        let mut seen = 0;
        for reader in readers {
            seen += reader.await.unwrap();
        }
        let commands = rig.commands().await;
        assert!(seen > 100 && commands["ping"] > 500, "{seen}, {commands:?}");
    });
}

#[test]
fn each_operation_is_one_trip_of_few_commands() {
    block_on(async {
        let mut rig = Rig::on_server_time().await;
        let value = || Bytes::from_static(b"v");
        let minute = 60 * SECOND;
        let touch = Touch { ttl: 2 * minute, slack: SECOND };
        let fence = fence(&rig).await;
        let tags = [tag(1)];
        let filled =
            Put::new(value(), minute).with_max_lifetime(minute).with_fence(fence).with_tags(&tags);
        let hard = Invalidation::Hard;
        let storage = rig.storage.clone();
        let stranger = rig.another_storage().await;
        stranger.ping().await.unwrap();
        // The scripts are loaded, and the record is made.
        storage.invalidate(&namespace(), Tags::Any(&[tag(0)]), hard).await.unwrap();
        storage.put(&key(0), filled.clone()).await.unwrap();
        storage.delete(&key(0), When::Always).await.unwrap();
        let () = rig.run(&[b"CONFIG", b"RESETSTAT"]).await;
        let mut expect = async |what: &str, expected: &str| {
            let counted = rig.commands().await;
            let counted: Vec<_> =
                counted.iter().map(|(name, count)| format!("{name} {count}")).collect();
            assert_eq!(counted.join(", "), expected, "{what}");
            let () = rig.run(&[b"CONFIG", b"RESETSTAT"]).await;
        };

        storage.put(&key(1), Put::new(value(), minute)).await.unwrap();
        expect("put", "evalsha 1, getrange 1, set 1, time 1").await;
        let version = storage.get(&key(1), Get::new()).await.unwrap().entry.unwrap().version;
        expect("get", "get 1, hmget 1, ping 1, time 1").await;
        storage.get(&key(1), Get::new().with_known(version)).await.unwrap();
        expect("get of a known version", "getrange 1, hmget 1, ping 1, time 1").await;
        storage.get(&key(1), Get::new().with_known(Version::from_u64(1))).await.unwrap();
        let both = "evalsha 1, get 1, getrange 2, hmget 1, ping 1, time 2";
        expect("get of another version", both).await;
        stranger.get(&key(1), Get::new()).await.unwrap();
        expect("get of what this process has not seen", "evalsha 1, get 1, time 1").await;
        stranger.get(&key(1), Get::new()).await.unwrap();
        expect("get of what it has seen", "get 1, hmget 1, ping 1, time 1").await;
        storage.get(&key(1), Get::new().with_touch(Touch { ttl: minute, ..touch })).await.unwrap();
        expect("touch that is not due", "get 1, hmget 1, ping 1, time 1").await;
        storage.get(&key(1), Get::new().with_touch(touch)).await.unwrap();
        let both = "evalsha 1, get 2, hmget 1, pexpire 1, ping 1, setrange 1, time 2";
        expect("touch", both).await;
        storage.get(&key(1), Get::new().with_touch(touch)).await.unwrap();
        expect("touch after a touch", "get 1, hmget 1, ping 1, time 1").await;
        let always = Touch { ttl: minute, slack: Duration::ZERO };
        storage.get(&key(1), Get::new().with_touch(always)).await.unwrap();
        expect("touch without slack", "evalsha 1, get 1, time 1").await;
        storage.put(&key(1), Put::new(value(), minute).with_condition(When::Absent)).await.unwrap();
        expect("conflict", "evalsha 1, get 1, getrange 1, time 1").await;
        storage.delete(&key(1), When::Always).await.unwrap();
        expect("delete", "evalsha 1, getrange 1, time 1, unlink 1").await;
        storage.get(&key(2), Get::new().with_fence()).await.unwrap();
        expect("miss with fence", "evalsha 1, get 1, hmget 1, time 1").await;
        storage.put(&key(2), filled).await.unwrap();
        expect("fill", "evalsha 1, getrange 1, hmget 1, pttl 1, set 1, time 1").await;
        storage.get(&key(2), Get::new().with_fence()).await.unwrap();
        expect("hit with fence", "get 1, hmget 1, ping 1, time 1").await;
        let read = Get::new().with_fence().with_touch(Touch { ttl: minute, ..touch });
        storage.get(&key(2), read).await.unwrap();
        expect("hit with fence and touch", "get 1, hmget 1, ping 1, time 1").await;
        storage.get(&key(7), read).await.unwrap();
        storage.get(&key(7), read).await.unwrap();
        let twice = "evalsha 1, get 2, hmget 2, ping 1, time 2";
        expect("miss with fence and touch, twice", twice).await;
        storage.get(&key(2), Get::new().with_fence().with_known(version)).await.unwrap();
        let both = "evalsha 1, get 1, getrange 2, hmget 2, ping 1, time 2";
        expect("hit of another version", both).await;
        storage.invalidate(&namespace(), Tags::Any(&tags), hard).await.unwrap();
        expect("purge", "evalsha 1, hlen 1, hmget 2, hset 2, pttl 1, time 1").await;
    });
}

#[test]
#[should_panic(expected = "without an end: tk:x")]
fn the_check_of_keys_notices_one_without_an_end() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        rig.check_keys();
        let () = rig.run(&[b"SET", b"tk:x", b"v"]).await;
        rig.check_keys();
    });
}
