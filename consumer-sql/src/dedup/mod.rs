//! The dedup store in a database: what the databases share.

mod batch;
mod driver;
mod jobs;
#[cfg(feature = "postgres")]
mod postgres;
pub(crate) mod record;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::{future::Future, sync::Arc};

use consumer_core::dedup::StoreError;
use tokio::sync::{mpsc, oneshot};

use crate::availability::Availability;

use driver::{Backend, Driver};
use jobs::{Answer, Job};

#[cfg(feature = "postgres")]
pub use postgres::{PostgresStore, PostgresStoreBuilder};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteStore, SqliteStoreBuilder};

/// The way to a driver.
#[derive(Clone)]
struct Handle {
    jobs: mpsc::UnboundedSender<Job>,
    availability: Arc<Availability>,
}

impl Handle {
    /// Starts a driver on the current runtime. `name` as in "the dedup store in …".
    fn start(backend: impl Backend, name: String) -> Self {
        let (jobs, received) = mpsc::unbounded_channel();
        let availability = Arc::<Availability>::default();
        tokio::spawn(Driver::new(backend, name, availability.clone()).run(received));
        Self { jobs, availability }
    }

    /// Enqueues by the call; the task goes on whatever becomes of the future.
    fn ask<T: Send + 'static, J: FnOnce(Answer<T>) -> Job>(
        &self,
        job: J,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + 'static + use<T, J> {
        let (answer, answered) = oneshot::channel();
        // If the task is gone, so is the sender of the answer.
        let _ = self.jobs.send(job(answer));
        async move {
            let gone = || StoreError::new("the task of the dedup store has ended with its runtime");
            answered.await.unwrap_or_else(|_| Err(gone()))
        }
    }
}

/// Makes a tuple struct around a [`Handle`] a dedup store.
macro_rules! dedup_store {
    ($store:ident) => {
        const _: () = {
            use consumer_core::dedup::{
                Claim, ClaimReply, ClaimRequest, DedupStore, ParkReply, ParkRequest, RenewRequest, Renewal,
                Resolution, Resolved, StoreError,
            };
            use std::{
                fmt,
                task::{Context, Poll},
                time::Duration,
            };
            use $crate::dedup::jobs::{Job, Renewing, Resolving};

            impl DedupStore for $store {
                fn claim(
                    &self,
                    request: ClaimRequest,
                ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
                    self.0.ask(move |answer| Job::Claim(request, answer))
                }

                fn resolve(
                    &self,
                    claim: Claim,
                    resolution: Resolution,
                    lifetime: Duration,
                ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
                    let resolving = Resolving { claim, resolution, lifetime, tried: None };
                    self.0.ask(move |answer| Job::Resolve(resolving, answer))
                }

                fn renew(
                    &self,
                    requests: Vec<RenewRequest>,
                ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
                    self.0.ask(move |answer| Job::Renew(Renewing::new(requests), answer))
                }

                fn park(
                    &self,
                    request: ParkRequest,
                ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
                    self.0.ask(move |answer| Job::Park(request, answer))
                }

                fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
                    self.0.ask(Job::Flush)
                }

                fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
                    self.0.availability.poll_up(cx)
                }
            }

            impl fmt::Debug for $store {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.debug_struct(stringify!($store)).finish_non_exhaustive()
                }
            }
        };
    };
}
use dedup_store;
