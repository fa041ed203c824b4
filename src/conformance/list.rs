//! The one list of clauses, and what is made of it.

use super::{Harness, Outcome, Report, report::caught};

/// Hands the list of clauses to another macro of this crate, after the arguments for it.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_clauses {
    ($callback:ident!($($arguments:tt)*)) => {
        $crate::$callback! {
            [$($arguments)*]
            a_lookup_returns_what_was_put
            an_absent_put_stores_only_where_nothing_is
            of_64_racing_absent_puts_one_wins
            of_64_racing_saves_one_wins
            a_stale_version_never_overwrites
            versions_rise_with_every_put
            versions_rise_over_delete_and_put
            versions_rise_over_expiry
            a_delete_says_whether_it_deleted
            a_delete_keeps_to_its_condition
            of_64_racing_deletes_one_wins
            any_bytes_are_a_value
            any_bytes_are_an_identity
            namespaces_and_details_are_separate
            an_invalid_put_is_refused_and_changes_nothing
            an_erased_handle_behaves_the_same
            a_known_version_is_confirmed_without_its_value
            a_known_version_comes_with_the_fence
            another_version_comes_with_its_value
            a_known_version_of_an_empty_value_is_confirmed
            a_known_version_is_not_confirmed_once_dead
            a_known_version_is_marked_when_stale
            a_known_version_is_touched
            the_hint_of_a_large_value_changes_nothing
            an_entry_lives_for_its_ttl
            an_expired_entry_is_absent_for_every_operation
            an_entry_past_its_deadline_is_absent_for_every_operation
            a_put_begins_a_new_life
            a_deadline_cuts_the_ttl
            age_counts_from_the_last_put
            a_touch_prolongs_the_life
            a_touch_keeps_version_and_age
            a_touch_is_throttled_by_its_slack
            a_touch_never_shortens_a_life
            a_touch_never_passes_the_deadline
            a_touch_never_resurrects
            the_longest_lives_do_not_overflow
            a_save_keeps_the_deadline
            a_save_only_brings_the_deadline_forward
            a_save_begins_its_own_ttl
            a_save_keeps_the_tags
            an_end_all_ends_a_saved_entry
            a_save_does_not_outlive_an_end_all_before_it
            a_save_does_not_outlive_an_invalidation_before_it
            a_save_keeps_the_soft_mark
            a_save_with_a_fence_obeys_both
            a_refused_save_changes_nothing
            an_invalidated_tag_is_never_served
            an_invalidated_entry_is_absent_for_every_operation
            an_entry_of_another_generation_is_absent_for_every_operation
            a_late_fill_is_refused
            a_late_fill_after_end_all_is_refused
            a_refused_fill_returns_what_is_there
            an_end_all_ends_only_what_has_a_fence
            an_invalidation_reaches_its_namespace_only
            a_soft_invalidation_only_marks
            a_fill_with_a_newer_fence_is_fresh
            a_soft_end_all_ends_too
            a_fence_from_elsewhere_is_refused
            a_fence_from_the_future_is_refused
            invalidations_within_one_instant_all_count
            a_forgotten_tag_lets_no_late_fill_in
            a_tag_is_remembered_for_the_longest_life
            each_of_100_tags_counts
            a_soft_invalidation_revives_nothing
            a_fence_is_no_newer_than_what_was_found_beside_it
            any_bytes_are_a_tag
            an_invalidation_may_meet_nothing
            a_put_replaces_the_tags
            a_lost_record_ends_its_entries
            a_lost_record_leaves_entries_without_a_fence
            a_put_does_not_recreate_a_lost_record
            a_new_record_is_of_another_generation
            racing_takes_admit_exactly_the_limit
            racing_calls_charge_both_quotas_or_none
            a_refusal_consumes_nothing_from_the_others
            a_refused_call_gives_nothing_back
            a_shadow_charge_never_vetoes
            a_shadow_charge_is_counted_when_granted
            a_peek_takes_nothing
            a_take_of_zero_is_always_allowed
            a_take_above_the_limit_can_never_fit
            a_force_takes_what_is_not_there
            a_reset_forgets_all_usage
            a_change_of_the_limit_keeps_usage
            the_fields_of_a_verdict_agree
            a_calendar_quota_ends_with_the_calendar
            verdicts_come_in_the_order_of_the_charges
            two_charges_with_one_key_are_refused
            counters_are_separate
            a_refund_restores_exactly
            racing_refunds_of_two_quotas_return_once
            a_refund_returns_at_most_what_was_taken
            a_repeated_refund_never_overfills
            a_refund_of_a_force_leaves_no_debt
            a_refund_never_reaches_another_window
            a_refund_after_a_reset_returns_nothing
            a_refund_to_a_forgotten_counter_returns_nothing
            retry_after_is_true
            reset_after_is_true
            replenish_after_is_true
            usage_is_forgotten_after_two_periods
            no_period_admits_more_than_promised
            a_dropped_put_is_whole_or_nothing
            a_dropped_lookup_harms_nothing
            a_dropped_delete_is_whole_or_nothing
            a_dropped_invalidation_can_be_repeated
            a_dropped_acquire_is_whole_or_nothing
        }
    };
}

/// A `#[tokio::test]` for every clause of the [conformance suite](crate::conformance), in this
/// module and named as the clause.
///
/// The first argument is an expression that makes the [`Harness`](crate::conformance::Harness),
/// evaluated once per test. What follows is handed to [`tokio::test`].
///
/// ```
/// # mod mine {
/// # use std::time::Duration;
/// # use tower_keep::{MemoryStorage, conformance::Harness, storage::Name};
/// # pub struct MyHarness;
/// # impl Harness for MyHarness {
/// #     type Storage = MemoryStorage;
/// #     async fn storage(&self) -> MemoryStorage { MemoryStorage::new() }
/// #     async fn advance(&self, by: Duration) { tokio::time::advance(by).await }
/// #     fn tick(&self) -> Duration { Duration::from_secs(1) }
/// #     fn tolerance(&self) -> Duration { Duration::ZERO }
/// #     async fn lose_tags(&self, _: &MemoryStorage, _: &Name) -> bool { false }
/// # }
/// # }
/// # use mine::MyHarness;
/// mod on_a_paused_clock {
///     tower_keep::conformance_tests!(super::MyHarness, start_paused = true);
/// }
/// mod on_many_threads {
///     tower_keep::conformance_tests!(super::MyHarness, flavor = "multi_thread");
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! conformance_tests {
    ($harness:expr $(, $($tokio:tt)*)?) => {
        $crate::__conformance_clauses! { __conformance_tests!($harness; ($($($tokio)*)?)) }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ([$harness:expr; $tokio:tt] $($clause:ident)*) => {
        $(
            #[::tokio::test $tokio]
            async fn $clause() {
                let outcome = $crate::conformance::$clause(&$harness).await;
                let outcome = $crate::conformance::Outcome::from(outcome);
                if let $crate::conformance::Outcome::Skipped(why) = outcome {
                    ::std::eprintln!("skipped: {why}");
                }
            }
        )*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_run {
    ([$harness:ident $report:ident] $($clause:ident)*) => {
        $({
            let outcome = caught(async { Outcome::from(super::$clause($harness).await) }).await;
            $report.note(stringify!($clause), outcome);
        })*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_names {
    ([] $($clause:ident)*) => { &[$(stringify!($clause)),*] };
}

/// The names of all clauses.
pub const CLAUSES: &[&str] = __conformance_clauses!(__conformance_names!());

/// Runs all clauses one after another, each on a fresh storage, and returns which of them the
/// backend breaks. Panics are caught and end only their clause; set a panic hook if their messages
/// are not to be printed.
pub async fn run_all<H: Harness>(harness: &H) -> Report {
    let mut report = Report::default();
    __conformance_clauses!(__conformance_run!(harness report));
    report
}
