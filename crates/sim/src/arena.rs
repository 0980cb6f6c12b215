//! A table whose indices are made by the world only.

use std::ops::{Index, IndexMut};

/// Items with small numbers as names. An index that the table did not give is a bug of the simulator.
#[derive(Clone, Debug)]
pub(crate) struct Arena<T>(Vec<T>);

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Arena<T> {
    /// Adds an item and gives its index.
    pub(crate) fn push(&mut self, item: T) -> usize {
        self.0.push(item);
        self.0.len() - 1
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.0.iter_mut()
    }
}

impl<T> Index<usize> for Arena<T> {
    type Output = T;
    fn index(&self, index: usize) -> &T {
        self.0
            .get(index)
            .expect("the index was given by this table")
    }
}

impl<T> IndexMut<usize> for Arena<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        self.0
            .get_mut(index)
            .expect("the index was given by this table")
    }
}
