//! What was asked of the host and is not answered yet, by token.
//!
//! A token is a place in a list with the number of its uses: taking a place and giving it back cost
//! the same however many are open, and an answer that comes twice finds nothing.

use statehouse_sdk::adapter::Token;

/// What waits, by token.
#[derive(Debug)]
pub struct Pending<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    uses: u32,
    what: Option<T>,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Pending<T> {
    /// Keeps `what` until its token comes back.
    pub fn keep(&mut self, what: T) -> Token {
        if let Some(at) = self.free.pop()
            && let Some(place) = self.places.get_mut(at as usize)
        {
            place.uses = place.uses.wrapping_add(1);
            place.what = Some(what);
            return Token::from(place.uses) << 32 | Token::from(at);
        }
        self.places.push(Place { uses: 0, what: Some(what) });
        self.places.len() as Token - 1
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes back what was kept for this token; `None` when nothing is (any more).
    pub fn take(&mut self, token: Token) -> Option<T> {
        let at = token as u32;
        let place = self.places.get_mut(at as usize)?;
        if Token::from(place.uses) != token >> 32 {
            return None;
        }
        let what = place.what.take()?;
        self.free.push(at);
        if self.free.len() == self.places.len() && self.places.len() > 1_024 {
            // A burst is over. The counts of uses go too: answers of it can no longer come.
            self.free = Vec::new();
            self.places = Vec::new();
        }
        Some(what)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_token_comes_back_once_and_its_place_is_used_again() {
        let mut pending = Pending::default();
        let (first, second) = (pending.keep('a'), pending.keep('b'));
        assert_eq!(pending.take(first), Some('a'));
        assert_eq!(pending.take(first), None);
        let third = pending.keep('c');
        assert_ne!(third, first);
        assert_eq!(third as u32, first as u32);
        assert_eq!(pending.take(first), None);
        assert_eq!((pending.take(third), pending.take(second)), (Some('c'), Some('b')));
        assert_eq!(pending.take(12 << 32 | 9), None);
    }
}
