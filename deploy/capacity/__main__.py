"""Writes the tables of deploy/CAPACITY.md and deploy/capacity.png from deploy/capacity.json."""

from deploy.capacity import hpa, measured, page, picture


def main() -> None:
    """Simulates every scenario with the committed measurement and the committed autoscaler."""
    replica, autoscaling = measured.read(measured.COMMITTED), hpa.read()
    page.PAGE.write_text(page.fill(page.PAGE.read_text(), page.tables(replica, autoscaling)))
    picture.draw(replica, autoscaling, picture.FILE)


if __name__ == "__main__":
    main()
