//! Which samples each step of training sees: as many from every site.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::data::SiteData;
use crate::error::{Result, StageError};
use crate::trainer::params::Params;

/// Draws as many samples from each site for every step; each site goes through its samples in an order of its own, which is
/// drawn anew when all were used.
pub struct Sampler {
    per_site: usize,
    sites: Vec<SiteOrder>,
}

struct SiteOrder {
    rng: ChaCha8Rng,
    samples: Vec<i64>,
    next: usize,
}

/// Where a site's order stands.
#[derive(Clone, Serialize, Deserialize)]
pub struct OrderState {
    samples: Vec<i64>,
    next: usize,
    /// Position of the random stream: a number of 128 bits, as text.
    drawn: String,
}

impl Sampler {
    /// For the training samples of `sites`.
    ///
    /// # Errors
    /// A site without training samples, no site.
    pub fn new(params: &Params, sites: &[SiteData]) -> Result<Self> {
        let order = |site: &SiteData| {
            let samples = site.rows(false);
            if samples.is_empty() {
                return Err(StageError::Request(format!("the site `{}` has no training sample", site.site)));
            }
            // Named by the site, so that a further site leaves the order of the others alone.
            let seed = siteline_cache::Digest::of_bytes(format!("order\0{}\0{}", params.seed, site.site).as_bytes());
            Ok(SiteOrder { rng: ChaCha8Rng::from_seed(*seed.as_bytes()), next: samples.len(), samples })
        };
        let sites = sites.iter().map(order).collect::<Result<Vec<_>>>()?;
        if sites.is_empty() {
            return Err(StageError::Request("there is no site to train on".into()));
        }
        Ok(Self { per_site: params.batch.div_ceil(sites.len()), sites })
    }

    /// Steps until as many samples were drawn as there are.
    pub fn steps_per_epoch(&self) -> usize {
        let samples: usize = self.sites.iter().map(|site| site.samples.len()).sum();
        samples.div_ceil(self.per_site * self.sites.len())
    }

    /// Where it stands.
    pub fn state(&self) -> Vec<OrderState> {
        let state = |site: &SiteOrder| OrderState {
            samples: site.samples.clone(),
            next: site.next,
            drawn: site.rng.get_word_pos().to_string(),
        };
        self.sites.iter().map(state).collect()
    }

    /// Whether states are those of such a sampler.
    pub fn fits(&self, states: &[OrderState]) -> bool {
        let fits = |(site, state): (&SiteOrder, &OrderState)| {
            site.samples.len() == state.samples.len() && state.drawn.parse::<u128>().is_ok()
        };
        states.len() == self.sites.len() && self.sites.iter().zip(states).all(fits)
    }

    /// Takes up states that fit.
    pub fn take_up(&mut self, states: &[OrderState]) {
        for (site, state) in self.sites.iter_mut().zip(states) {
            site.rng.set_word_pos(state.drawn.parse().unwrap_or_default());
            (site.samples, site.next) = (state.samples.clone(), state.next);
        }
    }

    /// The samples of the next step, site by site.
    pub fn next_batch(&mut self) -> Vec<Vec<i64>> {
        let per_site = self.per_site;
        self.sites.iter_mut().map(|site| (0..per_site).map(|_| site.next()).collect()).collect()
    }
}

impl SiteOrder {
    fn next(&mut self) -> i64 {
        if self.next == self.samples.len() {
            self.samples.shuffle(&mut self.rng);
            self.next = 0;
        }
        self.next += 1;
        self.samples[self.next - 1]
    }
}
