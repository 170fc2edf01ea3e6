//! Every rule for sources and publishers can fail: for each there is a broker that breaks it.
//!
//! The brokers are the in-memory one behind a source and a publisher with one fault each.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod publisher;
mod source;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use consumer_core::memory::{CrashHandle, MemoryBroker};
use consumer_testing::{
    conformance::{self, BrokerUnderTest, Rule},
    unique,
};

use self::{publisher::FaultyPublisher, source::FaultySource};

/// What is wrong with a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    // In what is delivered.
    NeverSaysConnected,
    LosesEveryTenth,
    NeverWakes,
    DeliversTwice,
    IgnoresTheRoom,
    SilentWithoutRoom,
    DeliversBackwards,
    // In settling.
    IgnoresAcks,
    ForgetsAcksAtClose,
    AcksOnDelivery,
    AcksAtClose,
    RejectIsNack,
    NackIsAck,
    AcksAllBefore,
    IgnoresScopes,
    SettlesTwice,
    // In groups.
    OneGroupForAll,
    EveryMemberIsAGroup,
    OneMemberHasAll,
    // In connections.
    IgnoresCuts,
    AcksAtCut,
    LosesOneAfterCut,
    AnswersForAnEarlierFlush,
    HidesWhatACutLost,
    // In publishing.
    ConfirmsUnsent,
    WaitsForWhatIsHeld,
    PublishesWhenPolled,
    RefusesMany,
    ConfirmsToNowhere,
    IgnoresNotBefore,
    ConfirmsWhatACutLost,
    HangsAfterCut,
    RefusesAfterCut,
    StaysAwayAfterCut,
    // In content.
    DropsKeys,
    EmptyIsNull,
    NullIsEmpty,
    CutsLongPayloads,
    TextHeadersOnly,
    SortsHeaders,
    KeepsWhatIsRemoved,
    GivesCopiesAnId,
    GivesNoId,
    NamesAnotherOrigin,
}

const SOURCES: &[(&str, Fault)] = &[
    ("it_says_when_it_is_connected", Fault::NeverSaysConnected),
    ("every_message_is_delivered", Fault::LosesEveryTenth),
    ("messages_come_while_others_are_published", Fault::LosesEveryTenth),
    ("an_idle_source_is_woken", Fault::NeverWakes),
    ("messages_may_be_published_while_others_are_held", Fault::WaitsForWhatIsHeld),
    ("a_held_message_stays_held", Fault::DeliversTwice),
    ("a_held_message_stays_held", Fault::IgnoresAcks),
    ("nothing_beyond_the_room_is_pushed", Fault::IgnoresTheRoom),
    ("without_room_control_events_still_come", Fault::SilentWithoutRoom),
    ("order_is_kept_within_a_key", Fault::DeliversBackwards),
    ("order_is_kept_when_messages_come_again", Fault::DeliversBackwards),
    ("what_was_acked_does_not_come_again", Fault::IgnoresAcks),
    ("closing_settles_what_was_acked", Fault::ForgetsAcksAtClose),
    ("what_was_not_acked_comes_again", Fault::AcksOnDelivery),
    ("what_was_not_acked_comes_again", Fault::AcksAtClose),
    ("a_rejected_message_does_not_come_again", Fault::RejectIsNack),
    ("a_nacked_message_comes_again", Fault::NackIsAck),
    ("acks_out_of_order_lose_nothing", Fault::AcksAllBefore),
    ("stale_tags_are_ignored", Fault::IgnoresScopes),
    ("settling_twice_changes_nothing", Fault::SettlesTwice),
    ("a_group_goes_on_where_it_stopped", Fault::EveryMemberIsAGroup),
    ("every_group_gets_every_message", Fault::OneGroupForAll),
    ("many_members_share", Fault::EveryMemberIsAGroup),
    ("many_members_share", Fault::OneMemberHasAll),
    ("many_members_share", Fault::DeliversTwice),
    ("a_member_that_leaves_gives_back_what_it_held", Fault::AcksAtClose),
    ("a_member_that_leaves_gives_back_what_it_held", Fault::IgnoresAcks),
    ("closing_at_once_loses_nothing", Fault::AcksAtClose),
    ("closing_at_once_loses_nothing", Fault::ForgetsAcksAtClose),
    ("members_share_and_hand_over", Fault::OneMemberHasAll),
    ("a_full_member_learns_of_a_revoke", Fault::SilentWithoutRoom),
    ("a_crash_brings_back_what_was_not_acked", Fault::AcksOnDelivery),
    ("a_lost_connection_is_reported", Fault::IgnoresCuts),
    ("a_lost_connection_brings_back_what_was_held", Fault::AcksAtCut),
    ("a_lost_connection_brings_back_what_was_held", Fault::IgnoresAcks),
    ("a_lost_connection_brings_back_what_was_held", Fault::IgnoresScopes),
    ("a_flush_answers_for_all_that_was_acked", Fault::AnswersForAnEarlierFlush),
    ("a_flush_tells_what_was_lost", Fault::HidesWhatACutLost),
    ("cuts_lose_nothing", Fault::LosesOneAfterCut),
];

const PUBLISHERS: &[(&str, Fault)] = &[
    ("what_is_confirmed_is_delivered", Fault::ConfirmsUnsent),
    ("a_dropped_future_publishes_all_the_same", Fault::PublishesWhenPolled),
    ("many_may_be_in_flight", Fault::RefusesMany),
    ("a_missing_target_is_an_error", Fault::ConfirmsToNowhere),
    ("a_message_for_later_comes_later", Fault::IgnoresNotBefore),
    ("a_cut_loses_no_publish_silently", Fault::ConfirmsWhatACutLost),
    ("a_cut_loses_no_publish_silently", Fault::HangsAfterCut),
    ("a_cut_loses_no_publish_silently", Fault::RefusesAfterCut),
    ("a_publisher_survives_a_cut", Fault::StaysAwayAfterCut),
    ("payload_and_key_are_kept", Fault::DropsKeys),
    ("an_empty_payload_is_kept", Fault::EmptyIsNull),
    ("a_large_payload_is_kept", Fault::CutsLongPayloads),
    ("a_tombstone_is_no_empty_payload", Fault::NullIsEmpty),
    ("headers_are_kept_by_name", Fault::TextHeadersOnly),
    ("headers_are_kept_as_they_are", Fault::SortsHeaders),
    ("headers_are_changed_as_asked", Fault::KeepsWhatIsRemoved),
    ("an_id_is_given_where_there_is_none", Fault::GivesCopiesAnId),
    ("an_id_is_given_where_there_is_none", Fault::GivesNoId),
    ("the_origin_names_the_topic", Fault::NamesAnotherOrigin),
];

/// The in-memory broker with a fault.
struct Broken {
    fault: Fault,
    broker: MemoryBroker,
    sources: Mutex<Vec<CrashHandle>>,
    shared: Shared,
}

/// What sources and publishers know of each other.
#[derive(Debug, Clone, Default)]
struct Shared {
    cuts: Arc<AtomicUsize>,
    /// Deliveries that are not settled.
    held: Arc<AtomicUsize>,
}

impl Broken {
    fn new(fault: Fault) -> Self {
        let broker = MemoryBroker::new();
        if fault == Fault::DeliversTwice {
            broker.inject_duplicates(0.1, 7);
        }
        Self { fault, broker, sources: Mutex::default(), shared: Shared::default() }
    }
}

impl BrokerUnderTest for Broken {
    type Source = FaultySource;
    type Publisher = FaultyPublisher;

    async fn create_topic(&self, partitions: u32) -> String {
        let name = unique("topic");
        self.broker.create_topic(&name, partitions as usize);
        name
    }

    async fn source(&self, group: &str, topic: &str) -> FaultySource {
        let group = match self.fault {
            Fault::OneGroupForAll => "all".to_owned(),
            Fault::EveryMemberIsAGroup => unique("member"),
            _ => group.to_owned(),
        };
        let source = self.broker.source(&group, [topic]);
        let mut sources = self.sources.lock().unwrap();
        sources.push(source.crash_handle());
        FaultySource::new(source, self.fault, sources.len() > 1, self.shared.clone())
    }

    async fn publisher(&self) -> FaultyPublisher {
        FaultyPublisher::new(self.broker.publisher(), self.fault, self.shared.clone())
    }

    async fn cut(&self) {
        self.shared.cuts.fetch_add(1, Ordering::Relaxed);
        if self.fault == Fault::IgnoresCuts {
            return;
        }
        self.sources.lock().unwrap().iter().for_each(CrashHandle::lose_connection);
    }

    fn origin_name(&self, _: &str, topic: &str) -> String {
        let elsewhere = if self.fault == Fault::NamesAnotherOrigin { "elsewhere" } else { "" };
        format!("{topic}{elsewhere}")
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// Runs something on the paused clock; tells whether it panicked.
fn panics(run: impl Future<Output = ()>) -> bool {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(run))).is_err()
}

fn have_a_fault_each(rules: &[Rule], faults: &[(&str, Fault)]) {
    for rule in rules {
        assert!(faults.iter().any(|(name, _)| *name == rule.name), "no fault breaks {}", rule.name);
    }
}

#[test]
fn each_rule_for_sources_finds_its_fault() {
    have_a_fault_each(conformance::source::RULES, SOURCES);
    for (rule, fault) in SOURCES {
        let broken = Broken::new(*fault);
        assert!(panics(conformance::source::run(&broken, rule)), "{rule} holds for a source that {fault:?}");
    }
}

#[test]
fn each_rule_for_publishers_finds_its_fault() {
    have_a_fault_each(conformance::publisher::RULES, PUBLISHERS);
    for (rule, fault) in PUBLISHERS {
        let broken = Broken::new(*fault);
        assert!(
            panics(conformance::publisher::run(&broken, rule)),
            "{rule} holds for a publisher that {fault:?}"
        );
    }
}

#[test]
fn without_a_fault_all_rules_hold() {
    let sound = Broken::new(Fault::None);
    assert!(!panics(async {
        conformance::source::run_all(&sound).await;
        conformance::publisher::run_all(&sound).await;
    }));
}
