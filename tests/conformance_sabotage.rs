//! The suite notices when a backend breaks the contract, and where.
#![cfg(feature = "conformance")]

mod naive;

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use naive::{NaiveHarness, Sabotage};
use tower_keep::conformance::{self, CLAUSES, Report};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs on one thread, this one, so that its panics are the clauses'.
fn quietly<T>(future: impl Future<Output = T>) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    QUIET.set(true);
    let result = runtime.unwrap().block_on(future);
    QUIET.set(false);
    result
}

fn run(sabotage: Option<Sabotage>) -> Report {
    quietly(conformance::run_all(&NaiveHarness(sabotage)))
}

/// The named clauses do not hold, and those of another kind do.
fn breaks(sabotage: Sabotage, expected: &[&str]) {
    let report = run(Some(sabotage));
    let failed: Vec<_> = report.failed.iter().map(|(clause, _)| *clause).collect();
    for clause in expected {
        assert!(failed.contains(clause), "{clause} holds under {sabotage:?}: {report}");
    }
    assert!(failed.len() < CLAUSES.len() / 8, "too much fails to point anywhere: {report}");
}

/// The model notices too, and shows a short history.
fn differs_from_the_model(sabotage: Sabotage) {
    let harness = NaiveHarness(Some(sabotage));
    let found = panic::catch_unwind(AssertUnwindSafe(|| {
        quietly(conformance::agrees_with_the_model(&harness, 2_000));
    }));
    QUIET.set(false);
    let message = *found.expect_err("the model differs").downcast::<String>().unwrap();
    // One operation begins on each line that is indented once.
    let operations = message.lines().filter(|line| {
        line.starts_with("    ") && !line.starts_with("     ") && !line.starts_with("    }")
    });
    // Three to five as a rule; unshrunk it would be some thirty.
    assert!(operations.count() <= 10, "{message}");
}

#[test]
fn without_sabotage_nothing_fails_and_nothing_is_skipped() {
    let report = run(None);
    assert!(report.is_success() && report.skipped.is_empty(), "{report}");
    assert_eq!(report.passed, CLAUSES);
}

#[test]
fn an_absent_put_that_is_not_atomic_is_noticed() {
    breaks(
        Sabotage::AbsentPutIsNotAtomic,
        &["of_64_racing_absent_puts_one_wins", "racing_takes_admit_exactly_the_limit"],
    );
}

#[test]
fn a_touch_that_resurrects_is_noticed() {
    breaks(
        Sabotage::TouchResurrects,
        &["a_touch_never_resurrects", "an_expired_entry_is_absent_for_every_operation"],
    );
}

#[test]
fn an_acquire_that_burns_the_first_quota_is_noticed() {
    breaks(
        Sabotage::AcquireBurnsTheFirst,
        &["a_refusal_consumes_nothing_from_the_others", "racing_calls_charge_both_quotas_or_none"],
    );
}

#[test]
fn a_purge_that_a_late_fill_survives_is_noticed() {
    breaks(
        Sabotage::LateFillSurvivesPurge,
        &["a_late_fill_is_refused", "invalidations_within_one_instant_all_count"],
    );
}

#[test]
fn a_save_that_survives_end_all_is_noticed() {
    breaks(
        Sabotage::SaveSurvivesEndAll,
        &["a_save_does_not_outlive_an_end_all_before_it", "an_end_all_ends_a_saved_entry"],
    );
}

#[test]
fn trimming_without_a_floor_is_noticed() {
    breaks(Sabotage::TrimmingWithoutFloor, &["a_forgotten_tag_lets_no_late_fill_in"]);
}

#[test]
fn a_put_that_recreates_a_lost_record_is_noticed() {
    breaks(Sabotage::PutRecreatesRecord, &["a_put_does_not_recreate_a_lost_record"]);
}

#[test]
fn a_refund_into_another_window_is_noticed() {
    breaks(
        Sabotage::RefundIntoAnotherWindow,
        &["a_refund_never_reaches_another_window", "a_refund_after_a_reset_returns_nothing"],
    );
}

#[test]
fn a_version_that_does_not_rise_is_noticed() {
    breaks(Sabotage::VersionDoesNotRise, &["versions_rise_over_delete_and_put"]);
}

#[test]
fn a_known_version_that_skips_the_record_is_noticed() {
    breaks(
        Sabotage::KnownSkipsTheRecord,
        &["a_known_version_is_not_confirmed_once_dead", "a_known_version_is_marked_when_stale"],
    );
}

#[test]
fn the_model_notices_a_known_version_that_skips_the_record() {
    differs_from_the_model(Sabotage::KnownSkipsTheRecord);
}

#[test]
fn the_model_notices_a_touch_that_resurrects() {
    differs_from_the_model(Sabotage::TouchResurrects);
}

#[test]
fn the_model_notices_a_version_that_does_not_rise() {
    differs_from_the_model(Sabotage::VersionDoesNotRise);
}

#[test]
fn the_model_notices_a_save_that_survives_end_all() {
    differs_from_the_model(Sabotage::SaveSurvivesEndAll);
}

#[test]
fn the_model_notices_a_refund_into_another_window() {
    differs_from_the_model(Sabotage::RefundIntoAnotherWindow);
}

#[test]
fn a_fence_that_is_taken_after_the_lookup_is_noticed() {
    breaks(Sabotage::FenceIsTakenLater, &["a_fence_is_no_newer_than_what_was_found_beside_it"]);
}

#[test]
fn tags_that_are_passed_over_are_noticed() {
    for sabotage in [
        Sabotage::InvalidatesThreeTags,
        Sabotage::JudgesSixteenTags,
        Sabotage::KnownJudgesSixteenTags,
    ] {
        breaks(sabotage, &["each_of_100_tags_counts"]);
    }
}

#[test]
fn a_soft_invalidation_that_takes_a_hard_one_back_is_noticed() {
    breaks(Sabotage::SoftForgetsHard, &["a_soft_invalidation_revives_nothing"]);
}
