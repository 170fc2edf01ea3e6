//! What the driver's error codes mean for a source.

use rdkafka::error::{KafkaError as DriverError, RDKafkaErrorCode as Code};

/// What the client's own log and statistics tell already, and what a rebalance brings about.
pub(crate) fn is_outage(code: Code) -> bool {
    matches!(
        code,
        Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::MessageTimedOut
            | Code::PollExceeded
            | Code::NoOffset
    )
}

/// Errors that do not pass by themselves. Once messages have come, rights may be taken away for a while.
pub(crate) fn is_final(code: Code, received: bool) -> bool {
    match code {
        Code::Fatal | Code::FencedInstanceId | Code::UnreleasedInstanceId => true,
        Code::GroupAuthorizationFailed
        | Code::TopicAuthorizationFailed
        | Code::InconsistentGroupProtocol
        | Code::InvalidSessionTimeout
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::GroupMaxSizeReached
        | Code::UnsupportedAssignor => !received,
        _ => false,
    }
}

pub(crate) fn is_of_a_rebalance(error: &DriverError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::IllegalGeneration
                | Code::RebalanceInProgress
                | Code::UnknownMemberId
                | Code::StaleMemberEpoch
        )
    )
}

/// A commit that can never succeed. A generation that is over is none of these: the rebalance that ended it either
/// leaves a partition here, and the commit is repeated in the new generation, or takes it away, and there is nothing
/// to commit for it any more.
pub(crate) fn is_refused(error: &DriverError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::FencedInstanceId | Code::GroupAuthorizationFailed | Code::Fatal)
    )
}
