//! What every source has to do.

mod connection;
mod delivery;
mod members;
mod settle;

pub use connection::*;
pub use delivery::*;
pub use members::*;
pub use settle::*;

use super::{
    BrokerUnderTest, Capability,
    rules::{Rule, RulesReport, rules, run_rules},
};

rules! {
    it_says_when_it_is_connected: "A source without messages says that it is connected.";
    every_message_is_delivered: "Nothing is lost, also with several partitions.";
    messages_come_while_others_are_published: "Publishing and consuming at the same time loses nothing.";
    an_idle_source_is_woken: "A message that is published while a source waits wakes it.";
    messages_may_be_published_while_others_are_held: "A handler may publish: nothing waits for what it holds.";
    a_held_message_stays_held: "While a message is held for long, others come and go, and it does not come again.";
    nothing_beyond_the_room_is_pushed: "The room bounds what is handed over; the rest comes when there is room again.";
    without_room_control_events_still_come: "A full consumer gets no messages and still learns what happens to it.";
    order_is_kept_within_a_key needs Order: "Messages of one key come in the order they were published in.";
    order_is_kept_when_messages_come_again needs Order: "What comes again comes in its order, before what follows it.";
    what_was_acked_does_not_come_again: "An ack that was flushed holds.";
    closing_settles_what_was_acked: "An ack holds once the source is closed, flushed or not.";
    what_was_not_acked_comes_again: "Closing does not ack what is still held.";
    a_rejected_message_does_not_come_again: "A rejected message is done with.";
    a_nacked_message_comes_again needs Nack: "A nacked message comes again, without anything being closed.";
    acks_out_of_order_lose_nothing: "Acks in another order settle nothing that is not acked.";
    stale_tags_are_ignored: "A tag that names nothing settles nothing.";
    settling_twice_changes_nothing: "Only the first settlement counts, and a second one does no harm.";
    a_group_goes_on_where_it_stopped: "A group that subscribes again goes on behind what it had acked.";
    every_group_gets_every_message needs Groups: "Groups do not take messages from each other.";
    many_members_share needs Sharing: "Five members of a group get every message exactly once among them.";
    a_member_that_leaves_gives_back_what_it_held needs Sharing: "What a member held when it closed goes to the others.";
    closing_at_once_loses_nothing needs Sharing: "Members that close at the same time leave the rest, and only the rest.";
    members_share_and_hand_over needs Rebalance: "A member that joins takes its share over, and one that leaves gives its own up.";
    a_full_member_learns_of_a_revoke needs Rebalance: "A member without room is told to give up its share.";
    a_crash_brings_back_what_was_not_acked needs Crash: "What a crashed source held comes again.";
    a_lost_connection_is_reported needs Cut: "A source says that its connection is gone, ends its scopes, and comes back.";
    a_lost_connection_brings_back_what_was_held needs Cut: "What was held comes again, what was acked does not.";
    a_flush_answers_for_all_that_was_acked needs Cut: "A flush that was given up does not answer for what is acked after it.";
    a_flush_tells_what_was_lost needs Cut: "A flush fails when an ack was lost with its connection, and the next does not; an ack after that is unsettled.";
    cuts_lose_nothing needs Cut: "Connections that are lost again and again lose no message.";
}
