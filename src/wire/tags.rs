//! A list of tags as sent by a client.

use crate::types::{Limits, is_name, quoted};
use smallvec::{Array, SmallVec};

/// Maximum length of a list, as a multiple of the tags that a connection may have: a longer list of
/// duplicates would cost its worker milliseconds.
const MAX_REPEATS: usize = 4;

/// Above this number of tags, duplicates are found by sorting: a hostile list costs n log n.
const PAIRWISE_TAGS: usize = 32;

/// Why a list is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    #[error(
        "tags must be a list, each element 1-{max} bytes without control characters or commas: \
         tags[{index}] is {}",
        quoted(.tag)
    )]
    Malformed { index: usize, tag: Box<str>, max: usize },
    /// With the maximum number of tags.
    #[error("too many tags: at most {0} for one connection")]
    TooMany(usize),
}

/// Iterates over the elements of a comma-separated list, without the blanks around them. An empty
/// or blank list has none.
pub fn split(list: &str) -> impl Iterator<Item = &str> {
    let is_empty = trimmed(list).is_empty();
    (!is_empty).then(|| list.split(',').map(trimmed)).into_iter().flatten()
}

fn trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// Collects tags without duplicates, in the given order, at most [`Limits::tags`]. Duplicates do
/// not count unless there are very many.
pub struct TagList<A: Array> {
    tags: SmallVec<A>,
    given: usize,
    max: usize,
    max_bytes: usize,
}

impl<A> TagList<A>
where
    A: Array,
    A::Item: AsRef<str> + Ord,
{
    pub fn new(limits: &Limits) -> Self {
        Self { tags: SmallVec::new(), given: 0, max: limits.tags, max_bytes: limits.tag_bytes }
    }

    pub fn push(&mut self, tag: A::Item) -> Result<(), TagError> {
        if !is_name(tag.as_ref(), self.max_bytes) {
            let (index, tag, max) = (self.given, tag.as_ref().into(), self.max_bytes);
            return Err(TagError::Malformed { index, tag, max });
        }
        self.given += 1;
        if self.given > MAX_REPEATS * self.max {
            return Err(TagError::TooMany(self.max));
        }
        // Deduplicated only occasionally, so that each tag costs little, and never longer than
        // this, so that a list of duplicates takes no memory.
        if self.tags.len() >= 2 * self.max {
            self.drop_repeated()?;
        }
        self.tags.push(tag);
        Ok(())
    }

    pub fn finish(mut self) -> Result<SmallVec<A>, TagError> {
        self.drop_repeated()?;
        Ok(self.tags)
    }

    /// Removes all but the first of equal tags, keeping the order.
    fn drop_repeated(&mut self) -> Result<(), TagError> {
        let tags = &mut self.tags;
        let is_repeated: SmallVec<[bool; PAIRWISE_TAGS]> = if tags.len() <= PAIRWISE_TAGS {
            (0..tags.len()).map(|at| tags[..at].contains(&tags[at])).collect()
        } else {
            let mut order: Vec<usize> = (0..tags.len()).collect();
            order.sort_by_key(|&at| &tags[at]);
            let mut is_repeated = SmallVec::from_elem(false, tags.len());
            for pair in order.windows(2) {
                is_repeated[pair[1]] = tags[pair[0]] == tags[pair[1]];
            }
            is_repeated
        };
        let mut flags = is_repeated.into_iter();
        tags.retain(|_| flags.next() != Some(true));
        if tags.len() > self.max { Err(TagError::TooMany(self.max)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn read<'t>(tags: &[&'t str], limits: &Limits) -> Result<Vec<&'t str>, TagError> {
        let mut list = TagList::<[&str; 4]>::new(limits);
        tags.iter().try_for_each(|tag| list.push(*tag))?;
        assert!(list.tags.len() <= 2 * limits.tags);
        list.finish().map(SmallVec::into_vec)
    }

    #[test]
    fn repeated_tags_do_not_count() {
        let limits = Limits { tags: 2, ..Limits::default() };
        assert_eq!(read(&[], &limits), Ok(vec![]));
        assert_eq!(read(&["b", "a", "b", "b", "a"], &limits), Ok(vec!["b", "a"]));
        assert_eq!(read(&["b"; 8], &limits), Ok(vec!["b"]));
        assert_eq!(read(&["b"; 9], &limits), Err(TagError::TooMany(2)));
        assert_eq!(read(&["a", "b", "c"], &limits), Err(TagError::TooMany(2)));
        assert_eq!(read(&["a", "b", "c", "a", "a"], &limits), Err(TagError::TooMany(2)));
        let one = Limits { tags: 1, ..limits };
        assert_eq!(read(&["a", "a", "a"], &one), Ok(vec!["a"]));
        assert_eq!(read(&["a", "a", "b"], &one), Err(TagError::TooMany(1)));
    }

    #[test]
    fn a_tag_is_bounded_in_bytes() {
        let limits = Limits { tag_bytes: 3, ..Limits::default() };
        assert_eq!(read(&["abc", "\u{e9}"], &limits), Ok(vec!["abc", "\u{e9}"]));
        for bad in ["abcd", "", "a,b", "\n", "\u{e9}\u{e9}"] {
            let expected = TagError::Malformed { index: 1, tag: bad.into(), max: 3 };
            assert_eq!(read(&["a", bad], &limits), Err(expected), "{bad:?}");
        }
    }

    #[test]
    fn a_list_is_split_at_commas() {
        let split = |list| split(list).collect::<Vec<_>>();
        assert_eq!(split("a, b c ,\td"), ["a", "b c", "d"]);
        assert_eq!(split("a,,"), ["a", "", ""]);
        assert_eq!(split(" ,"), ["", ""]);
        assert!(split("").is_empty() && split(" \t").is_empty());
    }

    proptest! {
        #[test]
        fn the_first_of_equal_tags_stays_in_its_place(
            tags in vec("[a-e]{1,2}", 0..120), max in 1_usize..40,
        ) {
            let mut first: Vec<&str> = Vec::new();
            for tag in &tags {
                if !first.contains(&tag.as_str()) {
                    first.push(tag);
                }
            }
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            let limits = Limits { tags: max, ..Limits::default() };
            let is_long = tags.len() > MAX_REPEATS * max;
            let is_refused = is_long || first.len() > max;
            let wanted = if is_refused { Err(TagError::TooMany(max)) } else { Ok(first) };
            prop_assert_eq!(read(&tags, &limits), wanted);
        }
    }
}
