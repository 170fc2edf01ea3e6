//! `checkout serve`: the web service, and the relay beside it.

use std::{future::Future, time::Duration};

use axum::Router;
use consumer::{BoxError, DynPublisher, runtime::signal, sql::Relay};
use sqlx::Pool;
use tokio::{net::TcpListener, sync::watch, time::sleep};

use crate::{
    balances,
    broker::Broker,
    database::Shop,
    http::{self, Checkout},
    options::Serve,
    orders::Orders,
};

/// Before a relay that could not begin is started again.
const PAUSE: Duration = Duration::from_secs(1);
/// A client that does not finish its request keeps nobody from stopping for longer.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// Until it is asked to stop: then requests that have begun are answered, and after the last one the relay stops.
pub(crate) async fn run<DB: Shop>(
    pool: Pool<DB>,
    broker: Option<Box<dyn Broker>>,
    options: Serve,
) -> Result<(), BoxError> {
    let orders = Orders::new(pool.clone(), options.queue.clone());
    let routes = http::routes(Checkout::new(orders, options.servers.database_timeout));
    let listener = TcpListener::bind(options.listen).await?;
    let (stop, stopped) = watch::channel(false);
    let relay =
        (!options.no_relay).then(|| tokio::spawn(relay(pool.clone(), broker, options.queue, stopped)));
    println!("http://{}/orders", listener.local_addr()?);
    let served = serve(listener, routes).await;
    stop.send_replace(true);
    if let Some(relay) = relay {
        relay.await?;
    }
    served
}

async fn serve(listener: TcpListener, routes: Router) -> Result<(), BoxError> {
    let (terminate, last) = (signal::terminate(), signal::terminate());
    let too_late = async {
        last.await;
        sleep(LAST_REQUESTS).await;
    };
    tokio::select! {
        served = axum::serve(listener, routes).with_graceful_shutdown(terminate) => Ok(served?),
        () = too_late => {
            tracing::warn!("requests that have begun {LAST_REQUESTS:?} ago are cut off");
            Ok(())
        }
    }
}

/// Publishes what is committed. Neither the broker nor the database have to be there: orders are taken meanwhile.
async fn relay<DB: Shop>(
    pool: Pool<DB>,
    broker: Option<Box<dyn Broker>>,
    queues: Vec<String>,
    stop: watch::Receiver<bool>,
) {
    let publisher = async || -> Result<DynPublisher, BoxError> {
        match &broker {
            Some(broker) => broker.publisher(&queues).await,
            None => Ok(balances::in_process(pool.clone())),
        }
    };
    loop {
        let connected = tokio::select! {
            connected = publisher() => connected,
            () = stopped(&stop) => return,
        };
        let ended = match connected {
            Ok(publisher) => {
                Relay::new(pool.clone(), publisher).run(stopped(&stop)).await.map_err(BoxError::from)
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(report) => return tracing::info!("{report}"),
            Err(error) => {
                tracing::warn!(error = &*error, wait = ?PAUSE, "events wait in the outbox: the relay could not begin");
            }
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = stopped(&stop) => return,
        }
    }
}

fn stopped(stop: &watch::Receiver<bool>) -> impl Future<Output = ()> + Send + use<> {
    let mut stop = stop.clone();
    async move {
        // A sender that is gone is a stop as well.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}
