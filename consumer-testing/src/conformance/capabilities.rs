//! What a broker can do, which decides the rules it is held to.

use std::fmt;

macro_rules! capabilities {
    ($($(#[$doc:meta])* $field:ident, $variant:ident: $what:literal;)*) => {
        /// What a broker can do; everything by default. Rules about the rest do not apply to it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct Capabilities {
            $($(#[$doc])* pub $field: bool,)*
        }

        impl Default for Capabilities {
            fn default() -> Self {
                Self::ALL
            }
        }

        impl Capabilities {
            /// Everything.
            pub const ALL: Self = Self { $($field: true,)* };

            /// Whether a capability is among them.
            pub fn has(&self, capability: Capability) -> bool {
                match capability {
                    $(Capability::$variant => self.$field,)*
                }
            }
        }

        /// One of the [`Capabilities`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Capability {
            $($(#[$doc])* $variant,)*
        }

        impl Capability {
            /// Its name, which is that of the field in [`Capabilities`].
            pub fn name(self) -> &'static str {
                match self {
                    $(Capability::$variant => stringify!($field),)*
                }
            }

            /// What a broker without it cannot do.
            pub(super) fn what(self) -> &'static str {
                match self {
                    $(Capability::$variant => $what,)*
                }
            }
        }
    };
}

capabilities! {
    /// Messages of one key, partition or queue come in their order to a single consumer, also when they come again.
    order, Order: "keep an order";
    /// Every group gets every message.
    groups, Groups: "give every group every message";
    /// Members of one group share its messages.
    sharing, Sharing: "share the messages of a group among members";
    /// A member that joins takes partitions over from others, which are told by [`Event::Closing`](consumer_core::Event).
    rebalance, Rebalance: "take a share away from a member";
    /// A source that is dropped without being closed has crashed, and what it held is delivered again in time.
    crash, Crash: "tell that a source has crashed";
    /// A nacked message is delivered again while the source stays open.
    nack, Nack: "deliver a nacked message again to an open source";
    /// Connections can be cut, and what a source held on its connection is delivered again.
    cut, Cut: "have its connections cut";
    /// A null payload is not an empty one.
    tombstones, Tombstones: "tell a null payload from an empty one";
    /// Headers keep null values, repetition and order.
    all_headers, AllHeaders: "keep null, repetition and order of headers";
    /// Publishing to a topic that does not exist is an error.
    unroutable, Unroutable: "tell that a target does not exist";
    /// `not_before` delays delivery.
    delayed, Delayed: "deliver later";
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
