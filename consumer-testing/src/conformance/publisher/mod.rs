//! What every publisher has to do, seen through a source of the same broker.

mod confirm;
mod content;

pub use confirm::*;
pub use content::*;

use super::{
    BrokerUnderTest, Capability,
    rules::{Rule, RulesReport, rules, run_rules},
};

rules! {
    what_is_confirmed_is_delivered: "A confirmed message is there.";
    a_dropped_future_publishes_all_the_same: "The message is enqueued by the call, not by the first poll.";
    many_may_be_in_flight: "Many messages may be on their way at once, and each is confirmed.";
    a_missing_target_is_an_error needs Unroutable: "Publishing to nowhere is never confirmed.";
    a_message_for_later_comes_later needs Delayed: "A message for later is held back and not lost.";
    a_cut_loses_no_publish_silently needs Cut: "A publish in flight at a cut is confirmed and there, or a transient error, in time.";
    a_publisher_survives_a_cut needs Cut: "A publisher whose connection was cut comes back.";
    payload_and_key_are_kept: "Payload, key and id are kept byte for byte.";
    an_empty_payload_is_kept: "An empty payload stays one, and a missing key stays missing.";
    a_large_payload_is_kept: "A payload of 900 KiB comes through.";
    a_tombstone_is_no_empty_payload needs Tombstones: "A null payload stays null.";
    headers_are_kept_by_name: "Text and binary values are found under their names.";
    headers_are_kept_as_they_are needs AllHeaders: "Order, repetition, null and bytes of headers are kept.";
    headers_are_changed_as_asked: "What a publishing sets replaces, what it removes is gone, and the rest stays.";
    an_id_is_given_where_there_is_none: "A new message has an id to deduplicate by; a copy is left as it is.";
    the_origin_names_the_topic: "A message names the topic or queue that it came from.";
}
