//! The handler: what the service does with one order.

use consumer::{
    Failure, ResultExt,
    handler::{Attempt, Epoch, Json, MessageId, State},
};

use crate::{
    mail::{Mail, MailError, Mailer},
    order::OrderPlaced,
};

/// Mails a confirmation. Any error is transient unless said otherwise.
pub(crate) async fn confirm(
    Json(order): Json<OrderPlaced>,
    id: MessageId,
    Epoch(epoch): Epoch,
    Attempt(attempt): Attempt,
    State(mailer): State<Mailer>,
) -> Result<(), Failure> {
    let mail = Mail { message_id: id.to_string(), order_id: order.order_id, epoch, attempt };
    match mailer.send(&order.email, &mail).await {
        Err(bounced @ MailError::Bounced) => Err(bounced).permanent(),
        sent => Ok(sent?),
    }
}
