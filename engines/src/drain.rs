//! The frame's word to a program that it shall finish what it has begun and end.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

/// The order, once it is given, and who waits for it.
#[derive(Debug, Default)]
pub struct Drain {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    order: Option<Order>,
    waiting: Option<Waker>,
}

/// What was ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The stop signal.
    pub signal: i32,
    /// When SIGKILL is near; what is unfinished then has to be given up.
    pub until: Instant,
}

impl Drain {
    /// Gives the order. The first one counts.
    pub fn begin(&self, order: Order) {
        let mut state = self.lock();
        state.order.get_or_insert(order);
        let waiting = state.waiting.take();
        drop(state);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Waits for the order. One waiter at a time.
    pub async fn ordered(&self) -> Order {
        std::future::poll_fn(|context| {
            let mut state = self.lock();
            match state.order {
                Some(order) => Poll::Ready(order),
                None => {
                    state.waiting = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_first_order_counts_and_wakes() {
        let drain = Drain::default();
        let count = Arc::new(Count::default());
        let waker = Arc::clone(&count).into();
        let mut context = Context::from_waker(&waker);
        let mut waiting = pin!(drain.ordered());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let order = Order {
            signal: 15,
            until: Instant::now(),
        };
        drain.begin(order);
        drain.begin(Order { signal: 1, ..order });
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(order));
        assert_eq!(pin!(drain.ordered()).poll(&mut context), Poll::Ready(order));
    }
}
