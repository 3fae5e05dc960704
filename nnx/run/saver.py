"""What a run keeps in its folder while it trains."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnx import checkpoint
from nnx.checkpoint import Checkpoint, without_training
from nnx.errors import CheckpointError
from nnx.events import Epoch
from nnx.run import folder as run_folder
from nnx.system import distributed
from nnx.training.film import FilmRecorder
from nnx.training.setup import TrainingSetup


class RunSaver:
    """Writes a run's metrics, state, best network and film into its folder. Of several ranks, rank 0 writes."""

    def __init__(self, setup: TrainingSetup, folder: Path) -> None:
        self.setup, self.folder = setup, folder
        self.metrics = run_folder.read_metrics(folder, setup.state.history)
        distributed.on_rank_zero(lambda: run_folder.write_metrics(folder, self.metrics))
        filmed = setup.film_choice.value == "on"
        watched = setup.dataset.validation or setup.dataset.train
        self.film = FilmRecorder(setup.state, setup.dataset.spec, watched) if filmed else None
        self.step = setup.state.step if setup.saved else -1  # of the saved state
        self._saved_at = self._position if setup.saved else None

    @property
    def due(self) -> bool:
        """Whether the state or a frame of the film must be saved at this step."""
        return self._state_due or bool(self.film and self.film.due)

    @property
    def _state_due(self) -> bool:
        """Whether `train.save_every` asks for the state of this step, and it is not saved yet."""
        every = self.setup.config.train.save_every
        return isinstance(every, int) and self.setup.state.step % every == 0 and self._position != self._saved_at

    @property
    def last_saved(self) -> str:
        """The newest saved state, for messages."""
        if self.step < 0:
            return "Nothing was saved yet"
        return f"The state of step {self.step}, still finite, is in {self.folder / 'last.pt'}"

    def save_due(self) -> None:
        """Save what is `due`. Raises as `save_state`."""
        self.save_frame()
        if self._state_due:
            self.save_state()

    def save_epoch(self, epoch: Epoch) -> None:
        """Save the state, the network if it is the best, and the epoch's metrics. Raises as `save_state`."""
        self.save_state()
        if epoch.is_best:
            self.save_network()
        self.metrics.append({key: value for key, value in asdict(epoch).items() if key not in ("is_best", "stopping")})
        distributed.on_rank_zero(lambda: run_folder.append_metrics(self.folder, self.metrics[-1]))

    def resume_film(self) -> list[str]:
        """Continue the film in the folder, if one is wanted. A film that can't be read starts anew, with a warning."""
        try:
            if self.film:
                self.film.resume(self.folder)
            return []
        except CheckpointError as error:
            return [f"{error}. The film starts again at step {self.setup.state.step}"]

    def save_frame(self, *, last: bool = False) -> None:
        """Record a frame of the film where one is due, or the run's last. It is written with the next state, the last
        at once.

        Raises MachineError.
        """
        if self.film and (last or self.film.due):
            self.film.record()
        if self.film and last:
            self.film.write(self.folder)

    def save_state(self) -> None:
        """Write last.pt, unless this state is saved already. It comes before the network, since the network can be made
        from the state (see `resume.network_is_stale`), but not the reverse.

        Raises DivergedError where the state is not finite, MachineError.
        """
        if self._position == self._saved_at:
            return
        self.setup.state.check_finite()
        if self.film:  # first: a resume drops a frame too many, but one too few would never come again
            self.film.write(self.folder)
        self._write("last.pt", self.setup.checkpoint, keep=self.folder / "previous.pt")
        self.step, self._saved_at = self.setup.state.step, self._position

    def save_network(self) -> None:
        """Write checkpoint.pt. Raises MachineError."""
        self._write("checkpoint.pt", lambda: without_training(self.setup.checkpoint()))

    @property
    def _position(self) -> tuple[int, int]:
        """An epoch's last step and its end, after validation, are two positions."""
        return self.setup.state.epoch, self.setup.state.batch

    def _write(self, name: str, content: Callable[[], Checkpoint], **options: Any) -> None:
        distributed.on_rank_zero(lambda: checkpoint.write(self.folder / name, content(), **options))
