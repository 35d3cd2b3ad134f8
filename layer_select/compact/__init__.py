"""From a plan to a smaller model: layers cut, gaps repaired, the result an ordinary folder."""
