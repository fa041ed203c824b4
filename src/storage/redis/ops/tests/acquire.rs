//! The Lua against the pure functions of `quota`.

use std::{collections::HashMap, time::Duration};

use proptest::{prelude::*, sample::select, strategy::ValueTree, test_runner::TestRunner};

use super::{
    super::super::{codec, keys::Keys},
    rig::{Rig, START, block_on, cases},
};
use crate::{
    quota::{Algorithm, Quota, State},
    storage::{Charge, ErrorKind, Identity, Key, Name, Receipt, Spend, Storage, Verdict},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn key(detail: usize) -> Key {
    Key::new(&Name::new("api"), &Name::new(&format!("d{detail}")), Identity::new("alice"))
}

/// What [`Storage::acquire`] promises, in terms of pure functions. States never expire here, nor do
/// they under the virtual clock.
#[derive(Default)]
struct Model {
    now: u64,
    states: HashMap<Key, State>,
}

impl Model {
    fn acquire(&mut self, charges: &[Charge<'_>]) -> Vec<Verdict> {
        let step = |charge: &Charge<'_>| {
            charge.quota.step(self.states.get(charge.key), self.now, charge.spend)
        };
        let steps: Vec<_> = charges.iter().map(step).collect();
        let refused = |(charge, step): (&Charge<'_>, &crate::quota::Step)| {
            charge.enforce && !step.verdict.allowed
        };
        if charges.iter().zip(&steps).any(refused) {
            let judge = |charge: &Charge<'_>| {
                charge.quota.judge(self.states.get(charge.key), self.now, charge.spend)
            };
            return charges.iter().map(judge).collect();
        }
        for (charge, step) in charges.iter().zip(&steps) {
            if charge.spend.changes() && step.verdict.allowed {
                self.states.insert(charge.key.clone(), step.state.clone());
            }
        }
        steps.into_iter().map(|step| step.verdict).collect()
    }
}

#[derive(Debug, Clone)]
enum Op {
    Turn(i64),
    Acquire(Vec<Planned>),
}

#[derive(Debug, Clone)]
struct Planned {
    detail: usize,
    quota: Quota,
    spend: PlannedSpend,
    enforce: bool,
}

#[derive(Debug, Clone)]
enum PlannedSpend {
    Plain(Spend),
    /// Of one of the receipts so far, counted from the newest.
    Refund(u32, usize),
}

fn amount() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => 0..=4_u32,
        2 => 0..=200_u32,
        1 => any::<u32>(),
        1 => select(vec![u32::MAX, u32::MAX - 1, 1 << 31]),
    ]
}

fn period() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => select(vec![1_u64, 7, 1_000, 60_000, 3_600_000, 86_400_000, 366 * 86_400_000]),
        1 => 1..=366 * 86_400_000_u64,
    ]
    .prop_map(Duration::from_millis)
    .prop_flat_map(|period| {
        let odd = (0..1_000_u64)
            .prop_map(move |us| (period + Duration::from_micros(us)).min(366 * 1_440 * MINUTE));
        prop_oneof![3 => Just(period), 1 => odd]
    })
}

fn quota(period: Duration, kind: usize) -> impl Strategy<Value = Quota> {
    let burst = amount().prop_map(|burst| Algorithm::TokenBucket { burst: burst.max(1) }).boxed();
    let slots = prop_oneof![Just(10_u8), 1..=60_u8]
        .prop_map(|slots| Algorithm::StrictWindow { slots })
        .boxed();
    let algorithm = match kind {
        0 | 1 => Just(Algorithm::SlidingWindow).boxed(),
        2 => Just(Algorithm::FixedWindow).boxed(),
        3 => Just(Algorithm::CalendarDay).boxed(),
        4 => Just(Algorithm::CalendarMonth).boxed(),
        5 | 6 => burst,
        7 | 8 => slots,
        _ => Just(Algorithm::SlidingLog).boxed(),
    };
    let centuries = "a bucket that takes centuries to fill is none";
    (algorithm, amount()).prop_filter_map(centuries, move |(algorithm, limit)| {
        let most = if algorithm == Algorithm::SlidingLog { 1_000 } else { u32::MAX };
        Quota::try_new(algorithm, limit.clamp(1, most), period).ok()
    })
}

fn spend() -> impl Strategy<Value = PlannedSpend> {
    prop_oneof![
        8 => amount().prop_map(|units| PlannedSpend::Plain(Spend::Take(units))),
        1 => Just(PlannedSpend::Plain(Spend::Peek)),
        2 => amount().prop_map(|units| PlannedSpend::Plain(Spend::Force(units))),
        1 => Just(PlannedSpend::Plain(Spend::Reset)),
        4 => (amount(), 0..8_usize).prop_map(|(units, back)| PlannedSpend::Refund(units, back)),
    ]
}

/// A few counters, each with a period and an algorithm of its own that it mostly keeps.
fn plan() -> impl Strategy<Value = Vec<Op>> {
    let home = prop::collection::vec((period(), 0..10_usize), 4);
    home.prop_flat_map(|homes| {
        let charge = (0..homes.len(), any::<prop::sample::Index>()).prop_flat_map({
            let homes = homes.clone();
            move |(detail, other)| {
                let (period, kind) = homes[detail];
                let (_, other) = homes[other.index(homes.len())];
                let kind = prop_oneof![19 => Just(kind), 1 => Just(other)];
                let quota = kind.prop_flat_map(move |kind| quota(period, kind));
                (Just(detail), quota, spend(), prop::bool::weighted(0.8))
            }
        });
        let planned = charge.prop_map(|(detail, quota, spend, enforce)| Planned {
            detail,
            quota,
            spend,
            enforce,
        });
        let acquire = prop::collection::vec(planned, 1..=4).prop_map(|mut charges| {
            let mut seen = [false; 8];
            charges.retain(|charge| !std::mem::replace(&mut seen[charge.detail], true));
            Op::Acquire(charges)
        });
        let turn = (select(homes), -200..=250_i64, any::<bool>()).prop_map(
            |((period, _), hundredths, fine)| {
                let part = period.as_micros() as i64 / 100 * hundredths;
                Op::Turn(if fine { hundredths } else { part })
            },
        );
        let op = prop_oneof![3 => acquire, 2 => turn];
        prop::collection::vec(op, 1..40)
    })
}

#[test]
fn the_scripts_decide_and_store_what_the_pure_functions_do() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let mut runner = TestRunner::default();
        let mut decided = 0;
        for _ in 0..cases(120) {
            let plan = plan().new_tree(&mut runner).unwrap().current();
            if let Err((at, message)) = run(&mut rig, &plan, &mut decided).await {
                panic!("{message}\nafter {:#?}", shrink(&mut rig, &plan[..=at]).await);
            }
        }
        assert!(decided > 1_000);
        rig.check_keys();
    });
}

/// Drops what the failure does not need.
async fn shrink(rig: &mut Rig, plan: &[Op]) -> Vec<Op> {
    let mut plan = plan.to_vec();
    let mut i = plan.len();
    while i > 0 {
        i -= 1;
        let mut shorter = plan.clone();
        shorter.remove(i);
        if run(rig, &shorter, &mut 0).await.is_err() {
            plan = shorter;
        }
    }
    plan
}

async fn run(rig: &mut Rig, plan: &[Op], decided: &mut u32) -> Result<(), (usize, String)> {
    let () = rig.run(&[b"FLUSHALL"]).await;
    let mut model = Model { now: START, ..Model::default() };
    rig.set_clock(model.now).await;
    let mut receipts: Vec<Receipt> = Vec::new();
    for (at, op) in plan.iter().enumerate() {
        let planned = match op {
            Op::Turn(by) => {
                model.now = model.now.saturating_add_signed(*by).min(4_000_000_000_000_000);
                rig.set_clock(model.now).await;
                continue;
            }
            Op::Acquire(planned) => planned,
        };
        let keys: Vec<_> = planned.iter().map(|planned| key(planned.detail)).collect();
        let charges: Vec<_> = planned
            .iter()
            .zip(&keys)
            .map(|(planned, key)| {
                let spend = match planned.spend {
                    PlannedSpend::Plain(spend) => spend,
                    PlannedSpend::Refund(units, back) => {
                        match receipts.len().checked_sub(back + 1) {
                            Some(i) => Spend::Refund { units, receipt: receipts[i] },
                            None => Spend::Peek,
                        }
                    }
                };
                let charge = Charge::new(key, planned.quota, spend);
                if planned.enforce { charge } else { charge.without_enforcement() }
            })
            .collect();
        let expected = model.acquire(&charges);
        let actual = rig.storage.acquire(&charges).await;
        *decided += 1;
        match &actual {
            Ok(actual) if *actual == expected => {}
            _ => {
                return Err((
                    at,
                    format!("charges {charges:?}\nexpected {expected:#?}\nactual {actual:#?}"),
                ));
            }
        }
        receipts.extend(expected.iter().filter_map(|verdict| verdict.receipt));
        for charge in &charges {
            let names = Keys { prefix: &rig.prefix, hash_key: &rig.hash_key };
            let name = names.counter(charge.key);
            let digest = charge.key.digest(&rig.hash_key);
            let stored: Option<Vec<u8>> = rig.run(&[b"GET", &name]).await;
            let expected = model.states.get(charge.key).map(|state| {
                let head = codec::counter_head(charge, digest);
                [&head[..10], &state.encode()].concat()
            });
            if stored != expected {
                let message = format!("{charge:?}\nexpected {expected:?}\nstored   {stored:?}");
                return Err((at, message));
            }
        }
    }
    Ok(())
}

/// The quotas of every algorithm, so that their windows pass quickly.
fn each_algorithm() -> [Quota; 5] {
    [
        Quota::sliding_window(40, SECOND),
        Quota::fixed_window(40, SECOND),
        Quota::token_bucket(40, SECOND, 40),
        Quota::strict_window(40, SECOND),
        Quota::sliding_log(40, SECOND),
    ]
}

#[test]
fn receipts_of_any_age_return_what_the_pure_functions_say() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let alice = key(0);
        for quota in each_algorithm() {
            let mut model = Model { now: START, ..Model::default() };
            let mut receipts = Vec::new();
            for turn in 0..60_usize {
                model.now += 87_654;
                rig.set_clock(model.now).await;
                let mut spends = vec![Spend::Take(3)];
                if turn % 3 == 0 {
                    let aged = |receipt: &Receipt| Spend::Refund { units: 1, receipt: *receipt };
                    spends.extend(receipts.iter().rev().skip(turn % 7).step_by(6).map(aged));
                }
                for spend in spends {
                    let charge = [Charge::new(&alice, quota, spend)];
                    let expected = model.acquire(&charge);
                    assert_eq!(rig.storage.acquire(&charge).await.unwrap(), expected, "{quota}");
                    receipts.extend(expected[0].receipt);
                }
            }
            let () = rig.run(&[b"FLUSHALL"]).await;
            rig.set_clock(model.now).await;
        }
    });
}

#[test]
fn forced_units_without_end_share_the_last_entry_of_the_log() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let alice = key(0);
        let mut model = Model { now: START, ..Model::default() };
        for n in 0..1_005 {
            model.now += 7;
            rig.set_clock(model.now).await;
            let charge = [Charge::new(&alice, Quota::sliding_log(1_000, MINUTE), Spend::Force(1))];
            let expected = model.acquire(&charge);
            assert_eq!(rig.storage.acquire(&charge).await.unwrap(), expected, "call {n}");
        }
        // The thousandth would be over by now, had it not been joined by younger ones.
        model.now = START + 7 * 1_000 + MINUTE.as_micros() as u64;
        rig.set_clock(model.now).await;
        let peek = [Charge::new(&alice, Quota::sliding_log(1_000, MINUTE), Spend::Peek)];
        let actual = rig.storage.acquire(&peek).await.unwrap();
        assert_eq!((actual[0].remaining, &actual), (994, &model.acquire(&peek)));
    });
}

#[test]
fn months_end_when_they_do_in_the_calendar() {
    const DAY: u64 = 86_400_000_000;
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let (alice, quota) = (key(0), Quota::calendar_month(5));
        // To the end of 2104, over a leap year that is none.
        for day in (0..49_308_u64).step_by(13).chain(47_475..47_600) {
            let now = day * DAY + day;
            rig.set_clock(now).await;
            let charge = Charge::new(&alice, quota, Spend::Take(9));
            let actual = rig.storage.acquire(&[charge.without_enforcement()]).await.unwrap();
            assert_eq!(actual, [quota.step(None, now, charge.spend).verdict], "day {day}");
            let charge = Charge::new(&alice, quota, Spend::Force(1));
            let actual = rig.storage.acquire(&[charge]).await.unwrap()[0].reset_after;
            assert_eq!(actual, quota.step(None, now, charge.spend).verdict.reset_after);
            rig.storage.acquire(&[Charge::new(&alice, quota, Spend::Reset)]).await.unwrap();
        }
    });
}

#[test]
fn bytes_that_are_no_state_count_as_a_counter_that_was_never_used() {
    block_on(async {
        let mut rig = Rig::on_virtual_time().await;
        let mut runner = TestRunner::default();
        let alice = key(0);
        let names = Keys { prefix: &rig.prefix, hash_key: &rig.hash_key };
        let (name, digest) = (names.counter(&alice), alice.digest(&rig.hash_key));
        let quotas = [
            Quota::sliding_window(10, MINUTE),
            Quota::fixed_window(10, MINUTE),
            Quota::calendar_day(10),
            Quota::token_bucket(10, MINUTE, 10),
            Quota::strict_window(10, MINUTE),
            Quota::sliding_log(10, MINUTE),
        ];
        let fresh: Vec<_> = quotas.iter().map(|q| q.step(None, START, Spend::Take(3))).collect();
        let tail = prop_oneof![
            2 => prop::collection::vec(any::<u8>(), 0..80).boxed(),
            1 => prop::collection::vec(select(vec![0, 0xff_u8]), 0..80).boxed(),
        ];
        for round in 0..cases(200) {
            let garbage = (tail.clone(), 0..4_usize).new_tree(&mut runner).unwrap().current();
            for (quota, fresh) in quotas.iter().zip(&fresh) {
                let charge = Charge::new(&alice, *quota, Spend::Take(3));
                let head = codec::counter_head(&charge, digest);
                let mut foreign = head;
                foreign[5] ^= 1;
                let right = [&head[..10], &fresh.state.encode()].concat();
                let bytes = match garbage.1 {
                    0 => garbage.0.clone(),
                    1 => [&head[..], &garbage.0].concat(),
                    2 => [&foreign[..], &right[11..]].concat(),
                    // A state of the right length with numbers that no double holds.
                    _ => [&head[..], &vec![0xff; right.len() - 11]].concat(),
                };
                let state = bytes.strip_prefix(&head[..10]).and_then(State::decode);
                let expected = quota.step(state.as_ref(), START, Spend::Take(3)).verdict;
                let () = rig.run(&[b"SET", &name, &bytes, b"PX", b"60000"]).await;
                let actual = rig.storage.acquire(&[charge]).await.unwrap();
                assert_eq!(actual, [expected], "round {round}, {quota}, {bytes:?}");
            }
        }
        let () = rig.run(&[b"DEL", &name]).await;
        let _: u64 = rig.run(&[b"LPUSH", &name, b"x"]).await;
        let charge = Charge::new(&alice, quotas[0], Spend::Take(3));
        let error = rig.storage.acquire(&[charge]).await.unwrap_err();
        assert!(error.to_string().contains("another type"), "{error}");
    });
}

#[test]
fn a_decision_is_one_script_of_three_commands_and_a_refusal_of_two() {
    block_on(async {
        let mut rig = Rig::on_server_time().await;
        let (a, b, c) = (key(0), key(1), key(2));
        let quota = Quota::sliding_window(2, MINUTE);
        let single = [Charge::new(&a, quota, Spend::Take(1))];
        let tiers = [
            Charge::new(&a, quota, Spend::Take(1)),
            Charge::new(&b, Quota::token_bucket(9, MINUTE, 9), Spend::Take(1)),
            Charge::new(&c, Quota::calendar_month(9), Spend::Take(1)),
        ];
        rig.storage.acquire(&[Charge::new(&a, quota, Spend::Peek)]).await.unwrap();
        for (charges, expected) in [
            (&single[..], &[("evalsha", 1), ("get", 1), ("set", 1), ("time", 1)][..]),
            (&tiers, &[("evalsha", 1), ("mget", 1), ("set", 3), ("time", 1)]),
            (&tiers, &[("evalsha", 1), ("mget", 1), ("time", 1)]),
            (&single, &[("evalsha", 1), ("get", 1), ("time", 1)]),
        ] {
            let () = rig.run(&[b"CONFIG", b"RESETSTAT"]).await;
            rig.storage.acquire(charges).await.unwrap();
            let counted = rig.commands().await;
            let expected = expected.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
            assert_eq!(counted, expected);
        }
        rig.check_keys();
    });
}

#[test]
fn a_reply_that_is_not_the_answer_is_corrupt() {
    let a = key(0);
    let charges = [Charge::new(&a, Quota::sliding_window(2, MINUTE), Spend::Take(1))];
    let check = *b"12345678";
    let good = [&check[..], &[0; 8], &[5], &[0; 68]].concat();
    let read =
        |bytes: &[u8]| codec::verdicts(redis::Value::BulkString(bytes.into()), check, &charges);
    assert!(read(&good).unwrap()[0].receipt.is_some());
    let mut wrong = vec![good[..good.len() - 1].to_vec(), [&good[..], b"x"].concat()];
    for (at, byte) in [(0, b'9'), (16, 3), (16, 4), (16, 7), (16, 255)] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        wrong.push(bytes);
    }
    for bytes in wrong {
        assert_eq!(read(&bytes).unwrap_err().kind(), ErrorKind::Corrupt, "{bytes:?}");
    }
    for value in [redis::Value::Nil, redis::Value::Int(1), redis::Value::Array(vec![])] {
        assert_eq!(codec::verdicts(value, check, &charges).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn as_many_charges_as_one_call_may_have_are_decided_and_more_are_refused() {
    block_on(async {
        let rig = Rig::on_server_time().await;
        let (namespace, detail) = (Name::new("t"), Name::new("d"));
        let key = |n: usize| Key::new(&namespace, &detail, Identity::new(n.to_be_bytes()));
        let keys: Vec<_> = (0..4_001).map(key).collect();
        let quota = Quota::sliding_window(5, Duration::from_secs(60));
        let charge = |key| Charge::new(key, quota, Spend::Take(1));
        let charges: Vec<_> = keys.iter().map(charge).collect();
        assert_eq!(rig.storage.acquire(&charges[..4_000]).await.unwrap().len(), 4_000);
        let error = rig.storage.acquire(&charges).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    });
}
