"""The profile of a team: the one given, one measured before, or one measured now."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfb.files import write
from sfb.runtime.agreement import on_all_ranks
from sfb.runtime.team import Team
from sfb.tuning.calibrate import FIRST_USE, Probes, identity, measure
from sfb.tuning.profile import Profile, ProfileError

__all__ = ["Profiles", "cache_file", "differences", "keep"]

_log = logging.getLogger("sfb")
_measured: dict[str, str] = {}  # what this process has measured: JSON by key of the identity


@dataclass
class Profiles:
    """The profile that the ranks of one communicator choose by.

    Attributes:
        given: The user's profile, which goes before any other.
        probes: What a profile times.
        known: The profile, once it is found or measured.
    """

    given: Profile | None
    probes: Probes = field(default_factory=Probes)
    known: Profile | None = None

    @property
    def at_hand(self) -> Profile | None:
        """The profile as far as this rank knows it without the others."""
        return self.known or self.given

    def find(self, team: Team) -> Profile | None:
        """Return the profile given, or that of SFB_PROFILE, of this process or of the user's cache; collective.

        Returns:
            None if no such profile exists.

        Raises:
            ProfileError: The file of SFB_PROFILE is no profile; raised on every rank.
        """
        if self.known is None:
            who = identity(team)
            text: str | None = None
            with on_all_ranks(team.world, "Comm"):
                if team.rank == 0:
                    text = _find(self.given, who)
            text = team.world.bcast(text)
            self.known = None if text is None else Profile.from_json(text)
        return self.known

    def require(self, team: Team) -> Profile:
        """Return the profile that `find` returns; if there is none, measure one for this process; collective."""
        found = self.find(team)
        if found is None:
            found = self.known = self.measure(team, FIRST_USE)
            if team.rank == 0:
                _measured[_key(found.identity)] = found.to_json()
        return found

    def measure(self, team: Team, seconds: float) -> Profile:
        """Measure a profile in about ``seconds``, whatever is known already, and only return it; collective."""
        return measure(team, seconds, self.probes)


def cache_file(who: Mapping[str, Any]) -> Path:
    """Return the file in the user's cache for the profile of ranks with this identity.

    Raises:
        OSError: The user has no cache, as one has neither a HOME nor a name.
    """
    import platformdirs

    try:
        folder = Path(platformdirs.user_cache_dir("sfb"))
    except (RuntimeError, KeyError) as error:
        raise OSError(f"no folder for a cache: {error}; set XDG_CACHE_HOME or HOME") from error
    if not folder.is_absolute():  # "~", where nobody knows the user's home
        raise OSError("no folder for a cache: the user has no home; set XDG_CACHE_HOME or HOME")
    return folder / f"profile-{_key(who)}.json"


def differences(profile: Profile, who: Mapping[str, Any]) -> str:
    """Return in what a profile was measured elsewhere than on ranks with the identity ``who``; "" if in nothing."""
    foreign = [key for key, value in who.items() if profile.identity and profile.identity.get(key) != value]
    return "; ".join(f"{key} {profile.identity.get(key)}, here {who[key]}" for key in foreign)


def keep(profile: Profile) -> Path:
    """Write a profile into the user's cache, and return its file.

    Raises:
        OSError: The cache cannot be written.
    """
    path = cache_file(profile.identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, profile.to_json())
    return path


def _key(who: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(who, sort_keys=True).encode(), digest_size=8).hexdigest()


def _find(given: Profile | None, who: dict[str, Any]) -> str | None:
    """Return the JSON of a profile for ranks with the identity ``who``; warn if it is of other ranks."""
    named = os.environ.get("SFB_PROFILE")
    if given is not None:
        profile, name = given, "the profile"
    elif named:
        profile, name = Profile.load(named), named
    elif (text := _measured.get(_key(who))) is not None:
        return text
    else:
        return _cached(who)
    said = differences(profile, who)
    if said:
        _log.warning("%s was measured elsewhere (%s); sfb tune measures here", name, said)
    return profile.to_json()


def _cached(who: dict[str, Any]) -> str | None:
    """Return the JSON of the profile in the user's cache, None if there is none or it is damaged."""
    try:
        path = cache_file(who)
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # without a cache, ranks measure
        _log.info("no profile from the cache: %s", error)
        return None
    try:
        return Profile.from_json(text.decode(errors="replace"), str(path)).to_json()
    except ProfileError as error:
        _log.warning("a damaged profile is measured again: %s; sfb tune replaces the file", error)
        return None
