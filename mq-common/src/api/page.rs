//! Long lists, page by page: a response fits into one frame however long the list is, and the caller
//! continues after it.
//!
//! The size of a page is measured in parts, not in bytes: names and ids are bounded, so parts are too. A page
//! contains at least one item, however large. Items that are added or removed between two pages may be
//! missed; others are not.

use std::future::IntoFuture;

use rpc_core::CallError;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};
use crate::limits::PAGE_PARTS_MAX;

/// Asks for one page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRequest<C> {
    /// Return the items after this one; `None` = from the first one.
    pub after: Option<C>,
    /// The most items to return; `None` = as many as fit. At least one is returned.
    pub max: Option<u32>,
}

impl<C> Default for PageRequest<C> {
    fn default() -> Self {
        Self {
            after: None,
            max: None,
        }
    }
}

/// One page, in the order of the cursors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T, C> {
    /// Its items.
    pub items: Vec<T>,
    /// The `after` of the next page; `None` if this is the last one.
    pub next: Option<C>,
}

impl<T, C> Page<T, C> {
    /// Cuts a page from the beginning of `items`. `cursor` returns an item's position, `parts` how many parts
    /// it has besides itself (queues, names).
    pub fn cut(
        items: impl IntoIterator<Item = T>,
        max: Option<u32>,
        cursor: impl Fn(&T) -> C,
        parts: impl Fn(&T) -> usize,
    ) -> Self {
        let max = max.map_or(usize::MAX, |max| {
            usize::try_from(max).unwrap_or(usize::MAX).max(1)
        });
        let mut page = Self {
            items: Vec::new(),
            next: None,
        };
        let mut left = PAGE_PARTS_MAX;
        for item in items {
            let size = parts(&item).saturating_add(1);
            if page.items.last().is_some() && (page.items.len() >= max || size > left) {
                page.next = page.items.last().map(cursor);
                break;
            }
            left = left.saturating_sub(size);
            page.items.push(item);
        }
        page
    }
}

/// Fetches all items, page by page.
///
/// # Errors
/// The error of the first call that fails; an internal error if a page does not advance.
///
/// # Cancel safety
/// Dropping the future has no effect.
pub async fn all_pages<T, C, F>(mut ask: impl FnMut(PageRequest<C>) -> F) -> Result<Vec<T>, CallError<Error>>
where
    C: Clone + Ord,
    F: IntoFuture<Output = Result<Page<T, C>, CallError<Error>>>,
{
    let mut items = Vec::new();
    let mut after = None;
    loop {
        let page = ask(PageRequest {
            after: after.clone(),
            max: None,
        });
        let page = page.await?;
        items.extend(page.items);
        match page.next {
            None => return Ok(items),
            next if next > after => after = next,
            _ => {
                let message = "the broker's list does not advance: a page ends where it began";
                return Err(CallError::App(Error::new(ErrorCode::Internal, message)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    fn serve(list: &[(u32, usize)], request: &PageRequest<u32>) -> Page<(u32, usize), u32> {
        let behind = list.iter().copied().filter(|(key, _)| Some(*key) > request.after);
        Page::cut(behind, request.max, |(key, _)| *key, |(_, parts)| *parts)
    }

    fn all(list: &[(u32, usize)], max: Option<u32>) -> (Vec<(u32, usize)>, usize) {
        let mut pages = 0;
        let all = all_pages(|request| {
            pages += 1;
            ready(Ok(serve(list, &PageRequest { max, ..request })))
        });
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        let std::task::Poll::Ready(all) = std::pin::pin!(all).poll(&mut context) else {
            panic!("nothing here waits");
        };
        (all.unwrap(), pages)
    }

    #[test]
    fn pages_together_are_the_list() {
        let list: Vec<_> = (0..25).map(|key| (key, 0)).collect();
        assert_eq!(all(&list, Some(10)), (list.clone(), 3));
        assert_eq!(all(&list, Some(25)), (list.clone(), 1));
        assert_eq!(all(&list, None), (list.clone(), 1));
        assert_eq!(all(&list, Some(0)), (list, 25), "one item at least");
        assert_eq!(all(&[], None), (Vec::new(), 1));
    }

    #[test]
    fn page_is_cut_by_the_parts_of_its_items() {
        let half = PAGE_PARTS_MAX / 2;
        let list = [(1, half), (2, half), (3, half), (4, 20 * half), (5, 0)];
        assert_eq!(serve(&list, &PageRequest::default()).items, [(1, half)]);
        assert_eq!(all(&list, None), (list.to_vec(), 5));
    }

    #[test]
    fn list_in_a_circle_is_an_error() {
        let round = all_pages(|_: PageRequest<u32>| {
            ready(Ok(Page {
                items: vec![1],
                next: Some(7),
            }))
        });
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let answer = std::pin::pin!(round).poll(&mut context);
        assert!(matches!(
            answer,
            std::task::Poll::Ready(Err(CallError::App(error))) if error.code == ErrorCode::Internal
        ));
    }
}
