//! What may happen in a history.

use proptest::{collection::vec, option, prelude::*};

/// One operation. What it needs from earlier answers it names by how many answers ago that was.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Advance {
        ticks: u32,
    },
    Get {
        key: usize,
        touch: Option<(u32, u32)>,
        fence: bool,
        known: Option<usize>,
    },
    Put {
        key: usize,
        ttl: u32,
        max_lifetime: Option<u32>,
        tags: u8,
        when: Cond,
        fence: Option<usize>,
    },
    Delete {
        key: usize,
        when: Cond,
    },
    Invalidate {
        namespace: usize,
        tags: Option<u8>,
        soft: bool,
    },
    Acquire {
        charges: Vec<Spending>,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Cond {
    Always,
    Absent,
    Version { ago: usize },
}

#[derive(Debug, Clone)]
pub(super) struct Spending {
    pub(super) counter: usize,
    pub(super) limit: u32,
    pub(super) what: What,
    pub(super) enforce: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    Take(u32),
    Peek,
    Force(u32),
    Refund { units: u32, ago: usize },
    Reset,
}

pub(super) const NAMESPACES: [&str; 2] = ["alpha", "beta"];
const KEYS: usize = 4;

/// Histories. `all` takes in the quotas whose units may come back at any time.
pub(super) fn ops(all: bool) -> impl Strategy<Value = Vec<Op>> {
    let when = || {
        prop_oneof![
            Just(Cond::Always),
            Just(Cond::Absent),
            // Mostly the newest: a stale one is refused soon enough.
            prop_oneof![4 => Just(0), 1 => 1..3_usize].prop_map(|ago| Cond::Version { ago }),
        ]
    };
    let what = prop_oneof![
        6 => (0..5_u32).prop_map(What::Take),
        1 => Just(What::Peek),
        1 => (0..8_u32).prop_map(What::Force),
        3 => (0..6_u32, 0..3_usize).prop_map(|(units, ago)| What::Refund { units, ago }),
        1 => Just(What::Reset),
    ];
    let counters = if all { 5 } else { 2_usize };
    let spending = (0..counters, prop_oneof![Just(4), Just(7)], what, prop::bool::weighted(0.8))
        .prop_map(|(counter, limit, what, enforce)| Spending { counter, limit, what, enforce });
    // One key is used more than the others, so that operations meet.
    let key = || prop_oneof![1 => Just(0), 1 => 0..KEYS];
    let fence = prop_oneof![3 => Just(0), 1 => 0..4_usize];
    let advance = (1..4_u32).prop_map(|ticks| Op::Advance { ticks });
    let known = option::weighted(0.4, prop_oneof![4 => Just(0), 1 => 1..3_usize]);
    let get = (key(), option::of((1..9_u32, 0..4_u32)), any::<bool>(), known)
        .prop_map(|(key, touch, fence, known)| Op::Get { key, touch, fence, known });
    let put = (key(), 1..7_u32, option::weighted(0.3, 1..9_u32), when()).prop_map(
        |(key, ttl, max_lifetime, when)| {
            let (tags, fence) = (0, None);
            Op::Put { key, ttl, max_lifetime, tags, when, fence }
        },
    );
    let life = option::weighted(0.9, 1..9_u32);
    let fill = (key(), 1..7_u32, life, 0..4_u8, when(), option::weighted(0.9, fence)).prop_map(
        |(key, ttl, max_lifetime, tags, when, fence)| Op::Put {
            key,
            ttl,
            max_lifetime,
            tags,
            when,
            fence,
        },
    );
    let delete = (key(), when()).prop_map(|(key, when)| Op::Delete { key, when });
    let namespace = prop_oneof![2 => Just(0), 1 => 0..NAMESPACES.len()];
    let invalidate = (namespace, option::weighted(0.7, 0..4_u8), prop::bool::weighted(0.3))
        .prop_map(|(namespace, tags, soft)| Op::Invalidate { namespace, tags, soft });
    let acquire = vec(spending, 1..4).prop_map(|charges| Op::Acquire { charges });
    let op = prop_oneof![
        3 => advance, 4 => get, 3 => put, 4 => fill, 1 => delete, 2 => invalidate, 6 => acquire
    ];
    vec(op, 1..60)
}
