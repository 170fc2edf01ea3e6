//! Values that layers hand to what is inside them.

use std::{
    any::{Any, TypeId},
    fmt,
    sync::Arc,
};

/// Typed values of one delivery: a list that is shared by clones and empty without an allocation.
#[derive(Clone, Default)]
pub(crate) struct Extensions(Option<Arc<Node>>);

struct Node {
    id: TypeId,
    value: Arc<dyn Any + Send + Sync>,
    next: Extensions,
}

impl Extensions {
    /// A new list with `value` in front; the old list is unchanged.
    pub(crate) fn with<T: Send + Sync + 'static>(&self, value: T) -> Self {
        Self(Some(Arc::new(Node { id: TypeId::of::<T>(), value: Arc::new(value), next: self.clone() })))
    }

    pub(crate) fn get<T: 'static>(&self) -> Option<&T> {
        let mut node = self.0.as_deref();
        while let Some(n) = node {
            if n.id == TypeId::of::<T>() {
                return n.value.downcast_ref();
            }
            node = n.next.0.as_deref();
        }
        None
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extensions")
    }
}
