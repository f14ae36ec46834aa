"Draw the logo and the social card of the site into nbs/images/: a frequent class, a rare one, and both mixed."
import sys, matplotlib, numpy as np
from pathlib import Path
from fastai.basics import Learner, nn, set_seed
from balmix_fastai.all import BalancedMixUp, read_images

matplotlib.use('Agg')
import matplotlib.pyplot as plt

images = Path(__file__).resolve().parents[1]/'nbs/images'
blue,orange,both = '#0072b2','#e69f00','#7a8a5c' # Okabe & Ito, and the two mixed

def logo(
    r:float=20., # Radius of the frequent class's disc, of a square of 64
    r1:float=13. # Radius of the rare class's disc
)->str: # SVG
    "Two overlapping discs, with the overlap in the mixed colour"
    big,small = f'<circle cx="24" cy="27" r="{r:g}"',f'<circle cx="44" cy="42" r="{r1:g}"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" role="img" aria-label="balmix_fastai"><clipPath id="c">{big}/></clipPath>\n'
        f'{big} fill="{blue}"/>{small} fill="{orange}"/>\n{small} fill="{both}" clip-path="url(#c)"/></svg>\n')

def card(
    fname, # File to write, a PNG of 1200 x 630 pixels
):
    "The name, what it does, and a mixed batch of digits"
    set_seed(1)
    learn = Learner(read_images('digits').dataloaders(bs=8, seed=0, device='cpu'), nn.Linear(1,1), cbs=BalancedMixUp(.2, seed=0))
    shown = learn.show_mixed_batch(max_n=4, lam=.4)
    ims = np.array(shown.axes).reshape(3, 4)
    fig = plt.figure(figsize=(12,6.3), facecolor='w')
    fig.text(.06, .68, 'balmix_fastai', fontsize=44, weight='bold', color='.15')
    fig.text(.06, .40, 'Balanced-MixUp and class-balanced\nsampling for imbalanced images,\nas fastai callbacks and loaders', fontsize=20, color='.3', linespacing=1.5)
    ax = fig.add_axes((.055, .14, .1, .19), xlim=(2,60), ylim=(57,5), aspect='equal')
    ax.axis('off')
    big,*small = (plt.Circle(o, r, color=c) for o,r,c in [((24,27),20,blue), ((44,42),13,orange), ((44,42),13,both)])
    for o in (big, *small): ax.add_patch(o)
    small[1].set_clip_path(big)
    for (i,j),ax in np.ndenumerate(ims):
        new = fig.add_axes((.55+.1*j, .64-.27*i, .095, .2))
        new.imshow(ax.images[0].get_array(), cmap='gray')
        new.axis('off')
    for i,name in enumerate(('image','partner','mixed')): fig.text(.545, .74-.27*i, name, fontsize=15, color='.3', rotation=90, va='center', ha='right')
    fig.savefig(fname, dpi=100, metadata=dict(Software=None))

def main():
    "Write both files."
    images.mkdir(exist_ok=True)
    (images/'logo.svg').write_text(logo())
    card(images/'card.png')

if __name__=='__main__': sys.exit(main())
