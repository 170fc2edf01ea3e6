//! How the in-memory broker misbehaves on request.

use crate::PublishError;

/// How a publish of the in-memory broker fails on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishFault {
    /// The broker is away; nothing is stored.
    Unavailable,
    /// The message is stored, and the confirm is lost.
    LostConfirm,
    /// The target does not exist.
    Unroutable,
    /// The message is too large.
    TooLarge,
    /// The broker refuses it for another reason.
    Refused,
}

impl PublishFault {
    pub(super) fn error(self, target: &str) -> PublishError {
        match self {
            PublishFault::Unavailable => {
                PublishError::unavailable(format!("memory broker is unavailable for topic {target}"))
            }
            PublishFault::LostConfirm => PublishError::unavailable(format!(
                "memory broker did not confirm a message for topic {target}"
            )),
            PublishFault::Unroutable => {
                PublishError::unroutable(format!("topic {target} does not exist at the memory broker"))
            }
            PublishFault::TooLarge => PublishError::too_large(format!(
                "message is too large for topic {target} of the memory broker"
            )),
            PublishFault::Refused => {
                PublishError::refused(format!("memory broker refuses a message for topic {target}"))
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Faults {
    pub(super) down: bool,
    publishes: Option<(usize, PublishFault)>,
    duplicates: usize,
    duplicate_rate: f64,
    random: u64,
    lost_settlements: usize,
}

impl Faults {
    pub(super) fn fail_publishes(&mut self, n: usize, fault: PublishFault) {
        self.publishes = (n > 0).then_some((n, fault));
    }

    pub(super) fn next_publish(&mut self) -> Option<PublishFault> {
        let (left, fault) = self.publishes.as_mut()?;
        *left -= 1;
        let (done, fault) = (*left == 0, *fault);
        if done {
            self.publishes = None;
        }
        Some(fault)
    }

    pub(super) fn duplicate_deliveries(&mut self, n: usize) {
        self.duplicates = n;
    }

    pub(super) fn duplicate_rate(&mut self, rate: f64, seed: u64) {
        self.duplicate_rate = rate;
        self.random = seed;
    }

    /// Whether the delivery at hand comes twice.
    pub(super) fn next_duplicate(&mut self) -> bool {
        if self.duplicates > 0 {
            self.duplicates -= 1;
            return true;
        }
        self.duplicate_rate > 0.0 && self.fraction() < self.duplicate_rate
    }

    pub(super) fn lose_settlements(&mut self, n: usize) {
        self.lost_settlements = n;
    }

    pub(super) fn next_settlement_is_lost(&mut self) -> bool {
        let lost = self.lost_settlements > 0;
        self.lost_settlements -= usize::from(lost);
        lost
    }

    /// SplitMix64, as a number from 0 to below 1.
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
