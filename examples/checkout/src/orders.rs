//! The orders this service knows. In memory, and gone with the process: what that costs is told in the program's docs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::order::Order;

/// All orders; clones are handles to the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Orders(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<String, Entry>,
    /// Which order a client's key stands for.
    by_key: HashMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    order: Order,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A request works on it.
    Publishing,
    /// A request has given up: the next one goes on.
    Unpublished,
    /// The event is with the broker.
    Placed,
}

/// What a request finds.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It is for this request to publish.
    Yours(Attempt),
    /// It has been placed before.
    Placed,
    /// Another request with the same order is being worked on.
    Busy,
    /// The key stands for another order.
    OtherUnderKey,
    /// There is another order with this id.
    OtherUnderId,
}

impl Orders {
    /// Stores the order as not published yet, if it is new.
    pub(crate) fn begin(&self, order: &Order, key: Option<&str>) -> Begun {
        let mut known = self.lock();
        if let Some(id) = key.and_then(|key| known.by_key.get(key))
            && known.by_id.get(id).is_none_or(|entry| entry.order != *order)
        {
            return Begun::OtherUnderKey;
        }
        match known.by_id.get_mut(&order.order_id) {
            Some(entry) if entry.order != *order => return Begun::OtherUnderId,
            Some(Entry { state: State::Placed, .. }) => return Begun::Placed,
            Some(Entry { state: State::Publishing, .. }) => return Begun::Busy,
            Some(entry) => entry.state = State::Publishing,
            None => {
                let entry = Entry { order: order.clone(), state: State::Publishing };
                known.by_id.insert(order.order_id.clone(), entry);
            }
        }
        if let Some(key) = key {
            known.by_key.insert(key.to_owned(), order.order_id.clone());
        }
        Begun::Yours(Attempt {
            orders: self.clone(),
            order_id: order.order_id.clone(),
            ends_as: State::Unpublished,
        })
    }

    /// An order that was placed; the others are nobody's business yet.
    pub(crate) fn placed(&self, order_id: &str) -> Option<Order> {
        let known = self.lock();
        known
            .by_id
            .get(order_id)
            .filter(|entry| entry.state == State::Placed)
            .map(|entry| entry.order.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to publish an order. Dropped, by a client that goes away too, it leaves the order to the next request.
#[derive(Debug)]
pub(crate) struct Attempt {
    orders: Orders,
    order_id: String,
    ends_as: State,
}

impl Attempt {
    /// The broker has confirmed the event.
    pub(crate) fn placed(mut self) {
        self.ends_as = State::Placed;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(entry) = self.orders.lock().by_id.get_mut(&self.order_id) {
            entry.state = self.ends_as;
        }
    }
}
