//! The assignments that deliveries belong to.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::scope::{Run, Scope};

/// One assignment of the source and how much of it is held.
struct Assignment {
    scope: Arc<Scope>,
    held: usize,
    /// When what runs is dropped, once the source has closed the assignment.
    drop_at: Option<Instant>,
}

pub(super) struct Scopes {
    run: Arc<Run>,
    root: CancellationToken,
    live: HashMap<u64, Assignment, RandomState>,
}

impl Scopes {
    pub(super) fn new(run: Arc<Run>) -> Self {
        Self { run, root: CancellationToken::new(), live: HashMap::default() }
    }

    /// Cancels everything: waiting layers hand their messages back.
    pub(super) fn cancel_all(&self) {
        self.live.values().for_each(|assignment| assignment.scope.cancel());
        self.root.cancel();
    }

    /// Takes a delivery into its scope.
    pub(super) fn hold(&mut self, scope: u64) {
        self.assignment(scope).held += 1;
    }

    /// The scope of a delivery that is held.
    pub(super) fn scope(&mut self, scope: u64) -> Arc<Scope> {
        self.assignment(scope).scope.clone()
    }

    fn assignment(&mut self, scope: u64) -> &mut Assignment {
        self.live.entry(scope).or_insert_with(|| {
            let scope = Scope::new(self.root.child_token(), self.run.clone());
            if self.root.is_cancelled() {
                scope.cancel();
            }
            Assignment { scope: Arc::new(scope), held: 0, drop_at: None }
        })
    }

    /// The source closes the scope. True when nothing of it is held, so that it can be released at once.
    pub(super) fn close(&mut self, scope: u64, drop_at: Instant) -> bool {
        match self.live.get_mut(&scope) {
            None => true,
            Some(assignment) => {
                assignment.scope.cancel();
                assignment.drop_at = Some(drop_at);
                self.forget_if_done(scope)
            }
        }
    }

    /// A delivery of the scope is done. True when it was the last of a closed scope.
    pub(super) fn done(&mut self, scope: u64) -> bool {
        let Some(assignment) = self.live.get_mut(&scope) else { return false };
        assignment.held -= 1;
        assignment.drop_at.is_some() && self.forget_if_done(scope)
    }

    fn forget_if_done(&mut self, scope: u64) -> bool {
        let done = self.live.get(&scope).is_some_and(|a| a.held == 0 && a.drop_at.is_some());
        if done {
            self.live.remove(&scope);
        }
        done
    }

    pub(super) fn is_closed(&self, scope: u64) -> bool {
        self.live.get(&scope).is_none_or(|assignment| assignment.drop_at.is_some())
    }

    /// When the next closed scope has to be dropped.
    pub(super) fn next_drop(&self) -> Option<Instant> {
        let open = self.live.values().filter(|assignment| !assignment.scope.is_over());
        open.filter_map(|assignment| assignment.drop_at).min()
    }

    /// Marks the closed scopes whose time is up; what runs in them has to be dropped. True if there is one.
    pub(super) fn end_due(&self, now: Instant) -> bool {
        let mut any = false;
        for assignment in self.live.values() {
            if !assignment.scope.is_over() && assignment.drop_at.is_some_and(|at| at <= now) {
                assignment.scope.end();
                any = true;
            }
        }
        any
    }

    /// Marks all scopes.
    pub(super) fn end_all(&self) {
        self.live.values().for_each(|assignment| assignment.scope.end());
    }
}
