//! A map that remembers which of its values may have changed, so that whoever follows them looks at
//! those only.

use alloc::collections::{BTreeMap, BTreeSet, btree_map};

/// An ordered map with the keys whose values were put in, taken out or lent for a change since the
/// last [`Watched::take_touched`].
#[derive(Clone, Debug)]
pub(crate) struct Watched<K, V> {
    map: BTreeMap<K, V>,
    touched: BTreeSet<K>,
}

impl<K: Ord + Clone, V> Watched<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            map: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// The keys that were touched since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<K> {
        core::mem::take(&mut self.touched)
    }

    /// Looks at a value; that is no change.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let value = self.map.get_mut(key);
        if value.is_some() && !self.touched.contains(key) {
            self.touched.insert(key.clone());
        }
        value
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.touched.insert(key.clone());
        self.map.insert(key, value)
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.map.remove(key);
        if value.is_some() {
            self.touched.insert(key.clone());
        }
        value
    }

    /// Keeps what `keep` says.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let touched = &mut self.touched;
        self.map.retain(|key, value| {
            let stays = keep(key, value);
            if !stays {
                touched.insert(key.clone());
            }
            stays
        });
    }

    pub(crate) fn clear(&mut self) {
        self.retain(|_, _| false);
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.map.contains_key(key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(crate) fn keys(&self) -> btree_map::Keys<'_, K, V> {
        self.map.keys()
    }

    pub(crate) fn values(&self) -> btree_map::Values<'_, K, V> {
        self.map.values()
    }

    pub(crate) fn iter(&self) -> btree_map::Iter<'_, K, V> {
        self.map.iter()
    }

    /// All values, to be changed: all count as touched.
    pub(crate) fn values_mut(&mut self) -> btree_map::ValuesMut<'_, K, V> {
        self.touched.extend(self.map.keys().cloned());
        self.map.values_mut()
    }
}

impl<'a, K, V> IntoIterator for &'a Watched<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = btree_map::Iter<'a, K, V>;
    fn into_iter(self) -> Self::IntoIter {
        self.map.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_remembered_once_and_looking_is_no_change() {
        let mut map: Watched<u8, u8> = Watched::new();
        map.insert(1, 10);
        map.insert(2, 20);
        map.insert(3, 30);
        assert_eq!(map.take_touched(), [1, 2, 3].into());
        assert_eq!(map.get(&1), Some(&10));
        assert_eq!(map.get_mut(&9), None);
        assert_eq!(map.take_touched(), BTreeSet::new());
        map.get_mut(&2);
        map.remove(&3);
        map.remove(&4);
        assert_eq!(map.take_touched(), [2, 3].into());
        map.retain(|key, _| *key != 1);
        assert_eq!(map.take_touched(), [1].into());
        assert_eq!(map.keys().collect::<alloc::vec::Vec<_>>(), [&2]);
    }
}
