//! Which functions are handlers, in two steps.
//!
//! [`HandlerShape`] asks for the number of arguments and for a future, nothing more. [`Handler`] asks for the rest where
//! the service is used. With one trait for both, the compiler would say of every mistake that "it is not a handler";
//! like this, it names the argument, the return type or the value that is not `Send`.

use tokio_util::sync::CancellationToken;

use super::{FromMessage, HandlerFuture, IntoResult};
use crate::{Failure, Message};

/// A function of up to eight arguments that returns a future. `M` stands for its arguments.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an async function of up to eight arguments",
    label = "not a handler",
    note = "a handler is an `async fn` with up to eight extractors as arguments"
)]
pub trait HandlerShape<M> {}

/// A function that handles messages with a state `S`: its arguments are extractors, its future is `Send`, and its result
/// says whether the message was processed.
pub trait Handler<M, S>: Clone + Send + Sync + 'static {
    /// The future of a call.
    type Future: Future<Output = Result<crate::Outcome, Failure>> + Send + 'static;

    /// Takes the arguments from the message and calls the function.
    fn call(&self, message: Message, state: &S) -> Self::Future;
}

/// A token for one call, where the function asks for one.
fn scoped(message: Message, wanted: bool) -> (Message, Option<CancellationToken>) {
    if !wanted {
        return (message, None);
    }
    let token = message.cancellation().child_token();
    (message.with_cancellation(token.clone()), Some(token))
}

macro_rules! handler_of {
    ($($argument:ident),*) => {
        impl<F, Fut, $($argument),*> HandlerShape<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> Fut,
            Fut: Future,
        {
        }

        #[allow(non_snake_case, unused_variables)]
        impl<F, Fut, S, $($argument),*> Handler<($($argument,)*), S> for F
        where
            F: Fn($($argument),*) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future + Send + 'static,
            Fut::Output: IntoResult,
            $($argument: FromMessage<S>,)*
        {
            type Future = HandlerFuture<Fut>;

            fn call(&self, message: Message, state: &S) -> HandlerFuture<Fut> {
                if let Some(defect) = message.defect() {
                    return HandlerFuture::failed(Failure::undecodable(defect.to_string()));
                }
                let (message, token) = scoped(message, false $(|| $argument::CANCELLATION)*);
                $(
                    let $argument = match $argument::from_message(&message, state) {
                        Ok(argument) => argument,
                        Err(failure) => return HandlerFuture::failed(failure),
                    };
                )*
                HandlerFuture::running(self($($argument),*), token)
            }
        }
    };
}

handler_of!();
handler_of!(A);
handler_of!(A, B);
handler_of!(A, B, C);
handler_of!(A, B, C, D);
handler_of!(A, B, C, D, E);
handler_of!(A, B, C, D, E, G);
handler_of!(A, B, C, D, E, G, H);
handler_of!(A, B, C, D, E, G, H, I);
