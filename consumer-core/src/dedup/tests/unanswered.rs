//! A store that gives an answer for some of the claims that are renewed together.

use std::task::Context;

use super::*;

/// Says nothing of the key `silent` the first times.
#[derive(Clone)]
struct Partial {
    memory: MemoryStore,
    silences: Arc<AtomicUsize>,
}

impl DedupStore for Partial {
    fn claim(
        &self,
        request: ClaimRequest,
    ) -> impl Future<Output = Result<ClaimReply, StoreError>> + Send + 'static + use<> {
        self.memory.claim(request)
    }

    fn resolve(
        &self,
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send + 'static + use<> {
        self.memory.resolve(claim, resolution, lifetime)
    }

    fn renew(
        &self,
        requests: Vec<RenewRequest>,
    ) -> impl Future<Output = Result<Vec<Renewal>, StoreError>> + Send + 'static + use<> {
        let silent = requests.iter().position(|request| request.claim.key == key("silent"));
        let left = silent.and_then(|_| self.silences.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).ok());
        let (silent, alone) = (left.and(silent), requests.len() == 1);
        let answer = self.memory.renew(requests);
        async move {
            match silent {
                None => answer.await,
                Some(_) if alone => Err(StoreError::new("the node is gone")),
                Some(at) => {
                    let mut renewals = answer.await?;
                    renewals[at] = Renewal::Unanswered;
                    Ok(renewals)
                }
            }
        }
    }

    fn park(
        &self,
        request: ParkRequest,
    ) -> impl Future<Output = Result<ParkReply, StoreError>> + Send + 'static + use<> {
        self.memory.park(request)
    }

    fn flush(&self) -> impl Future<Output = Result<(), StoreError>> + Send + 'static + use<> {
        self.memory.flush()
    }

    fn poll_available(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.memory.poll_available(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn fm37_a_claim_without_an_answer_is_not_lost_and_the_others_are_renewed() {
    let store = Partial { memory: MemoryStore::new(), silences: Arc::new(AtomicUsize::new(3)) };
    let service = service_fn(|_: Message| slow(100));
    let dedup = DedupLayer::new(store.clone(), "c").lease(LEASE).as_process(1, Gate::new()).layer(service);
    let running = ["silent", "a", "b"].map(|id| tokio::spawn(dedup.clone().call(message(id))));
    for handled in running {
        assert_eq!(handled.await.unwrap().unwrap(), Outcome::Processed);
    }
    assert_eq!(store.silences.load(SeqCst), 0);
}
